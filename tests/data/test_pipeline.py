"""Tests of training batches."""

import itertools
import pickle

import jax
import numpy as np
import pytest

from simcis_jax import types
from simcis_jax.data import pipeline, shapes
from simcis_jax.data.source import Example

SETTINGS = dict(size=32, max_segments=8, scale_range=(0.5, 1.5))


class Plain:
    """Images of given sizes; all pixels of image i have the value i + 1 and class 0."""

    name = 'plain'
    categories = types.Categories(('all',), (False,), ((0, 0, 0),))

    def __init__(self, *sizes):
        self._sizes = sizes

    def __len__(self):
        return len(self._sizes)

    def __getitem__(self, index):
        shape = self._sizes[index]
        return Example(
            np.full((*shape, 3), index + 1, np.uint8),
            np.ones(shape, np.int32),
            np.zeros(1, np.int32),
            np.zeros(1, bool),
            index,
        )

    def classes_of(self, index):
        return frozenset({0})


def labelled(indices, classes=range(8)):
    return dict.fromkeys(indices, frozenset(classes))


def train(num_images=6, **changes):
    settings = dict(images=labelled(range(num_images)), batch_size=4, seed=0, num_threads=1)
    settings |= SETTINGS
    return pipeline.train_iterator(shapes.Shapes('train', size=32), **(settings | changes))


def shown(batch):
    """Indices of the images in a batch of `Plain`."""
    return (batch.image[:, 0, 0, 0].astype(int) - 1).tolist()


def plain(num_images, **changes):
    unchanged = dict(scale_range=(1.0, 1.0), flip=False, color=False)
    settings = dict(images=labelled(range(num_images)), batch_size=2, seed=0) | SETTINGS | unchanged
    return pipeline.train_iterator(Plain(*[(32, 32)] * num_images), **(settings | changes))


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def differ(left, right):
    return not np.array_equal(left.image, right.image)


def test_a_batch_has_the_documented_shapes_and_types():
    batch = next(train())
    assert isinstance(batch, types.Batch)
    assert batch.image.shape == (4, 32, 32, 3) and batch.image.dtype == np.uint8
    targets = batch.targets
    assert targets.segment_map.shape == (4, 32, 32) and targets.segment_map.dtype == np.uint8
    assert targets.labels.shape == (4, 8) and targets.labels.dtype == np.int32
    assert targets.boxes.shape == (4, 8, 4) and targets.boxes.dtype == np.float32
    assert targets.dropped.shape == (4,) and targets.dropped.dtype == np.int32
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(batch))


def test_only_the_labelled_classes_of_an_image_are_targets():
    images = labelled(range(4), {1, 3}) | labelled(range(4, 6), {0, 2})
    iterator = train(images=images)
    seen = {index: set() for index in images}
    for position in range(12):
        batch, indices = iterator.at(position)
        for index, labels in zip(indices.tolist(), batch.targets.labels.tolist(), strict=True):
            seen[index] |= {*labels} - {-1}
    assert all(found <= images[index] for index, found in seen.items())
    assert set().union(*seen.values()) == {0, 1, 2, 3}


def test_every_epoch_has_each_image_once_in_a_new_order():
    images = [index for batch in take(plain(10), 15) for index in shown(batch)]
    epochs = [images[:10], images[10:20], images[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_only_the_given_images_are_used():
    images = [
        index for batch in take(plain(10, images=labelled([2, 7, 9])), 6) for index in shown(batch)
    ]
    assert set(images) == {2, 7, 9}


@pytest.mark.parametrize('num_images', [1, 3])
def test_images_repeat_in_a_batch_larger_than_the_data_set(num_images):
    batch = next(plain(num_images, batch_size=8))
    assert set(shown(batch)) == set(range(num_images))


def test_an_image_is_augmented_differently_each_time():
    first, second = take(train(1, batch_size=1), 2)
    assert differ(first, second)


def test_batches_depend_on_the_seed():
    first, same, other = next(train(seed=5)), next(train(seed=5)), next(train(seed=6))
    assert_equal(first, same)
    assert differ(first, other)


@pytest.mark.parametrize('interrupted_at', [0, 1, 4])
def test_an_interrupted_iterator_resumes_with_the_same_batches(interrupted_at):
    undisturbed = take(train(), 6)
    iterator = train(num_threads=3)
    take(iterator, interrupted_at)
    resumed = train()
    resumed.seek(iterator.position)
    for batch, expected in zip(take(resumed, 2), undisturbed[interrupted_at:], strict=False):
        assert_equal(batch, expected)


def test_a_running_iterator_can_seek_back():
    iterator = train()
    expected = next(iterator)
    take(iterator, 3)
    iterator.seek(0)
    assert_equal(next(iterator), expected)


def test_a_batch_and_its_image_indices_can_be_looked_up():
    images = labelled([4, 1, 3])
    iterator = plain(6, images=images)
    for position, batch in enumerate(take(plain(6, images=images), 5)):
        same, images = iterator.at(position)
        assert_equal(same, batch)
        assert images.tolist() == shown(batch)


@pytest.mark.parametrize('process_count', [2, 4])
def test_processes_share_the_rows_of_every_batch(process_count):
    parts = [
        train(process_index=process_index, process_count=process_count)
        for process_index in range(process_count)
    ]
    for batch in take(train(), 3):
        rows = [next(part) for part in parts]
        assert_equal(jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows), batch)


def test_a_batch_size_not_divisible_by_the_processes_is_an_error():
    with pytest.raises(ValueError, match='batch of 4 images cannot be shared by 3 processes'):
        train(process_count=3)


def test_an_empty_data_set_is_an_error():
    with pytest.raises(ValueError, match="No image of 'shapes_train'"):
        train(images={})


def test_an_unknown_augmentation_setting_is_an_error():
    with pytest.raises(TypeError, match='flipp'):
        train(flipp=True)


@pytest.mark.slow
def test_the_number_of_workers_does_not_change_batches():
    expected = take(train(), 5)
    iterator = train(num_workers=2)
    for batch, same in zip(take(iterator, 3), expected, strict=False):
        assert_equal(batch, same)
    other = train(num_workers=3)
    other.seek(iterator.position)
    for batch, same in zip(take(other, 2), expected[3:], strict=True):
        assert_equal(batch, same)
    iterator.close()
    other.close()


def test_an_augmentation_can_be_pickled():
    augmentation = pipeline.Augmentation(**SETTINGS)
    assert pickle.loads(pickle.dumps(augmentation)) == augmentation


def epoch(num_images, **changes):
    settings = dict(images=labelled(range(num_images)), batch_size=4, seed=0) | SETTINGS
    return list(pipeline.epoch_batches(shapes.Shapes('train', size=32), **(settings | changes)))


def test_epoch_batches_have_every_image_once_in_order():
    settings = SETTINGS | dict(scale_range=(1.0, 1.0), flip=False, color=False)
    batches = pipeline.epoch_batches(
        Plain(*[(32, 32)] * 7),
        images=labelled([6, 1, 2, 3, 5]),
        batch_size=3,
        seed=0,
        **settings,
    )
    images, real = zip(*[(shown(batch), real.tolist()) for batch, real in batches], strict=True)
    assert images == ([6, 1, 2], [3, 5, 6])
    assert real == ([True, True, True], [True, True, False])


def test_epoch_batches_are_augmented_and_reproducible():
    (first, _), (again, _), (other, _) = epoch(4)[0], epoch(4)[0], epoch(4, seed=1)[0]
    assert_equal(first, again)
    assert differ(first, other)


def test_processes_share_epoch_batches():
    parts = [epoch(6, process_index=index, process_count=2) for index in range(2)]
    for left, right, whole in zip(*parts, epoch(6), strict=True):
        rows = jax.tree.map(lambda *leaves: np.concatenate(leaves), left, right)
        assert_equal(rows, whole)
