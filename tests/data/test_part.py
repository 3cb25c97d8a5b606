"""Parts of a split."""

import pickle

import numpy as np
import pytest
from data.panoptic_tree import make_coco
from tiny import tiny_config

from simcis_jax.data.part import at_most, hold_out
from simcis_jax.data.shapes import Shapes
from simcis_jax.data.source import Source
from simcis_jax.settings.validated import from_config
from simcis_jax.training.stage_data import open_splits


@pytest.fixture(scope='module')
def images():
    return Shapes('train', size=32, num_images=11)


def ids(source):
    return [source[index].image_id for index in range(len(source))]


def test_every_nth_image_is_held_out_and_no_image_is_in_both_parts(images):
    kept, held_out = hold_out(images, 4)
    assert ids(held_out) == [f'train_{k:06}' for k in (3, 7)]
    assert sorted(ids(kept) + ids(held_out)) == ids(images)


def test_a_part_is_a_source_that_says_of_its_images_what_the_whole_says(images):
    for part, indices in zip(hold_out(images, 2), (range(0, 11, 2), range(1, 11, 2)), strict=True):
        part = pickle.loads(pickle.dumps(part))
        assert isinstance(part, Source) and part.categories == images.categories
        for index, whole in enumerate(indices):
            np.testing.assert_array_equal(part[index].image, images[whole].image)
            assert part.classes_of(index) == images.classes_of(whole)
            assert part.segments_of(index) == images.segments_of(whole)
            assert part.size_of(index) == images.size_of(whole)
            assert part.image_bytes(index) == images.image_bytes(whole)
            part.check_files(index)


def test_a_run_evaluates_on_held_out_images_instead_of_the_validation_split():
    data = from_config(tiny_config(**{'data.hold_out': 5}).to_dict()).data
    training, evaluated = open_splits(data)
    assert (len(training), len(evaluated)) == (32, 6)  # num_val_images is 6.
    assert not {*ids(training)} & {*ids(evaluated)}
    assert all(name.startswith('train_') for name in ids(evaluated))


def test_fewer_images_are_spread_over_the_split(images):
    assert ids(at_most(images, 3)) == [f'train_{k:06}' for k in (2, 6, 10)]
    assert len({*ids(at_most(images, 10))}) == 10
    assert at_most(images, 0) is at_most(images, 11) is at_most(images, 12) is images


def test_a_run_uses_at_most_as_many_images_of_files_as_configured(tmp_path):
    make_coco(tmp_path, official=False)
    files = {'data.name': 'coco_panoptic', 'data.root': str(tmp_path)}
    numbers = {'data.num_train_images': 2, 'data.num_val_images': 1}
    data = from_config(tiny_config(**files | numbers).to_dict()).data
    assert [len(part) for part in open_splits(data)] == [2, 1]


def test_nothing_to_evaluate_or_to_train_on_is_refused(images):
    with pytest.raises(ValueError, match="hold_out=12 leaves nothing .* 'shapes_train' has 11"):
        hold_out(images, 12)
    with pytest.raises(ValueError, match='data.hold_out=1 must be 0, or at least 2; with 1, no'):
        from_config(tiny_config(**{'data.hold_out': 1}).to_dict())
