"""Tests of `SemanticFolder` on small data sets written to a temporary folder."""

import json
import pickle

import cv2
import numpy as np
import pytest

from simcis_jax.data import open_source, source
from simcis_jax.data.semantic_folder import SemanticFolder

LABELS = np.array([[255, 2, 2, 2], [0, 0, 2, 255], [0, 0, 0, 0]], np.uint8)
CATEGORIES = [{'id': 30, 'name': 'road'}, {'id': 7, 'name': 'sky'}, {'id': 9, 'name': 'car'}]


def write(root, *, labels=LABELS, categories=CATEGORIES):
    (root / 'images/val').mkdir(parents=True)
    (root / 'semantic_val').mkdir()
    cv2.imwrite(str(root / 'images/val/b.jpg'), np.full((3, 4, 3), 90, np.uint8))
    cv2.imwrite(str(root / 'semantic_val/b.png'), labels)
    cv2.imwrite(str(root / 'images/val/a.png'), np.zeros((2, 2, 3), np.uint8))
    cv2.imwrite(str(root / 'semantic_val/a.png'), np.full((2, 2), 1, np.uint8))
    (root / 'images/val/Thumbs.db').touch()
    if categories is not None:
        (root / 'categories.json').write_text(json.dumps(categories))
    return root


def assert_one_line(error, *words):
    message = str(error.value)
    assert '\n' not in message
    for word in words:
        assert word in message


def test_an_example_has_one_segment_per_class_and_none_for_void(tmp_path):
    images = open_source('semantic_folder', 'val', root=str(write(tmp_path)))
    assert isinstance(images, source.Source) and len(images) == 2
    example = images[1]
    assert example.image_id == 'b' and (example.image == 90).all()
    np.testing.assert_array_equal(example.segment_map, [[0, 2, 2, 2], [1, 1, 2, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(example.labels, [0, 2])
    assert not example.crowd.any() and example.segment_map.dtype == example.labels.dtype == np.int32


def test_classes_of_an_image_are_the_labels_in_its_map(tmp_path):
    images = SemanticFolder(write(tmp_path), 'val')
    assert [images.classes_of(i) for i in range(2)] == [{1}, {0, 2}]
    (file,) = (tmp_path / 'images/val').glob('b.*')
    assert images.image_bytes(1) == file.stat().st_size
    copy = pickle.loads(pickle.dumps(images))
    assert copy.classes_of(1) == {0, 2} and copy.segments_of(1) == [0, 2]
    np.testing.assert_array_equal(copy[1].segment_map, images[1].segment_map)


def test_a_map_that_is_all_void_has_no_segments(tmp_path):
    images = SemanticFolder(write(tmp_path, labels=np.full((3, 4), 255, np.uint8)), 'val')
    assert images.classes_of(1) == frozenset() and len(images[1].labels) == 0
    assert not images[1].segment_map.any()


def test_categories_are_sorted_by_id_and_need_no_thing_flag(tmp_path):
    categories = SemanticFolder(write(tmp_path), 'val').categories
    assert categories.names == ('sky', 'car', 'road') and not any(categories.is_thing)


def test_categories_may_come_from_the_panoptic_json(tmp_path):
    root = write(tmp_path, categories=None)
    entries = [{**entry, 'isthing': 1} for entry in CATEGORIES]
    (root / 'panoptic_val.json').write_text(json.dumps({'categories': entries}))
    categories = SemanticFolder(root, 'val').categories
    assert categories.names == ('sky', 'car', 'road') and all(categories.is_thing)


def write_panoptic(root, entries):
    """Writes a split whose categories are in its panoptic JSON."""
    write(root, categories=None)
    (root / 'panoptic_val.json').write_text(json.dumps({'categories': entries}))
    return root


def test_categories_must_be_those_of_the_training_split(tmp_path):
    training = SemanticFolder(write(tmp_path / 'whole'), 'val').categories
    root = write_panoptic(tmp_path / 'part', CATEGORIES)
    assert SemanticFolder(root, 'val', training).categories == training
    entries = [{**CATEGORIES[0], 'name': 'street'}, *CATEGORIES[1:]]
    (root / 'panoptic_val.json').write_text(json.dumps({'categories': entries}))
    with pytest.raises(ValueError) as error:
        SemanticFolder(root, 'val', training)
    assert_one_line(
        error, 'panoptic_val.json', "category 30 is 'street' (stuff) here and 'road' (stuff) in"
    )


def test_fewer_categories_than_the_training_split_are_rejected(tmp_path):
    entries = [*CATEGORIES, {'id': 1, 'name': 'sea', 'isthing': 0}]
    training = SemanticFolder(write(tmp_path / 'whole', categories=entries), 'val').categories
    root = write_panoptic(tmp_path / 'part', CATEGORIES)
    with pytest.raises(ValueError) as error:
        SemanticFolder(root, 'val', training)
    assert_one_line(error, 'lists 3 classes, but the training split has 4', 'categories.json')


def test_masks_of_0_and_255_are_rejected_for_training(tmp_path):
    root = write(tmp_path, labels=np.where(LABELS == 255, 255, 0))
    cv2.imwrite(str(root / 'semantic_val/a.png'), np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError) as error:
        SemanticFolder(root, 'val')
    assert_one_line(
        error, 'semantic_val has the labels 0 and 255 alone', "marks 'car', write it as 1"
    )
    training = SemanticFolder(write(tmp_path / 'train'), 'val').categories
    assert len(SemanticFolder(root, 'val', training)) == 2
    # With a single class, 0 and 255 are valid labels: the class and void.
    (root / 'categories.json').write_text(json.dumps(CATEGORIES[:1]))
    assert len(SemanticFolder(root, 'val')) == 2


def test_missing_categories_are_an_error_that_shows_the_format(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        SemanticFolder(write(tmp_path, categories=None), 'val')
    assert_one_line(error, 'categories.json', 'panoptic_val.json', '"name": "sky"')


def test_a_label_without_a_class_is_an_error(tmp_path):
    with pytest.raises(ValueError) as error:
        SemanticFolder(write(tmp_path, labels=np.where(LABELS == 2, 3, LABELS)), 'val')
    assert_one_line(error, 'semantic_val/b.png has label 3', '0 to 2, or 255')


@pytest.mark.parametrize('missing', ['images/val/b.jpg', 'semantic_val/b.png'])
def test_an_image_or_label_map_without_partner_is_an_error(tmp_path, missing):
    root = write(tmp_path)
    (root / missing).unlink()
    with pytest.raises(FileNotFoundError) as error:
        SemanticFolder(root, 'val')
    assert_one_line(error, '/b.', 'no partner')


def test_different_sizes_of_image_and_labels_are_an_error(tmp_path):
    images = SemanticFolder(write(tmp_path, labels=LABELS[:2]), 'val')
    with pytest.raises(ValueError) as error:
        images[1]
    assert_one_line(error, 'semantic_val/b.png is 4x2', 'b.jpg is 4x3')


def test_two_images_with_one_name_are_an_error(tmp_path):
    root = write(tmp_path)
    cv2.imwrite(str(root / 'images/val/b.png'), np.zeros((3, 4, 3), np.uint8))
    with pytest.raises(ValueError) as error:
        SemanticFolder(root, 'val')
    assert_one_line(error, 'images/val/b.png', 'b.jpg differ only in their extension')


@pytest.mark.parametrize(
    ('categories', 'word'), [([], 'empty'), (['sky'], "'id'"), ({'id': 0}, 'JSON list')]
)
def test_invalid_categories_are_an_error(tmp_path, categories, word):
    with pytest.raises(ValueError) as error:
        SemanticFolder(write(tmp_path, categories=categories), 'val')
    assert_one_line(error, 'categories.json', word)
