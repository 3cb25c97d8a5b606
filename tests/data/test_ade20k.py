"""Tests of reading ADE20K, against loops over pixels and against real annotations."""

import cv2
import numpy as np
import pytest
from data.ade20k_tree import add_real_annotations, draw, make_tree, to_archives

from simcis_jax.data import ade20k
from simcis_jax.data.ade20k import CATEGORIES, LABEL_OF_INSTANCE, Ade20k


def panoptic_by_loops(labels, instances):
    """Merges the maps by loops: stuff by class, then things by instance over it."""
    segment_map, segments = np.zeros(labels.shape, int), []
    for label in range(150):
        if not CATEGORIES.is_thing[label] and (labels == label + 1).any():
            segments.append(label)
            segment_map[labels == label + 1] = len(segments)
    for number in range(1, 256):
        pixels = instances[..., 1] == number
        if pixels.any():
            (category,) = np.unique(instances[pixels][:, 0])
            segments.append(LABEL_OF_INSTANCE[category])
            segment_map[pixels] = len(segments)
    left = [k for k in range(1, len(segments) + 1) if (segment_map == k).any()]
    return (
        sum(new * (segment_map == old) for new, old in enumerate(left, start=1)),
        [segments[k - 1] for k in left],
    )


def test_there_are_150_classes_and_100_of_them_are_things():
    assert len(CATEGORIES) == 150 and sum(CATEGORIES.is_thing) == 100
    assert sorted(LABEL_OF_INSTANCE[1:]) == list(np.flatnonzero(CATEGORIES.is_thing))
    names = CATEGORIES.names
    assert names[:3] == ('wall', 'building', 'sky') and names[149] == 'flag'
    assert names[LABEL_OF_INSTANCE[1]] == 'bed' and names[LABEL_OF_INSTANCE[4]] == 'person'
    assert names[LABEL_OF_INSTANCE[18]] == 'wardrobe' and names[LABEL_OF_INSTANCE[57]] == 'booth'
    assert CATEGORIES.colors[2] == (6, 230, 230)


@pytest.mark.parametrize('seed', range(8))
def test_panoptic_segments_are_those_of_a_loop(seed):
    labels, instances = draw(np.random.default_rng(seed), range(150), (40, 50))
    segment_map, segments = ade20k.panoptic_segments(labels, instances, 'a.png')
    expected_map, expected = panoptic_by_loops(labels, instances)
    np.testing.assert_array_equal(segment_map, expected_map)
    np.testing.assert_array_equal(segments, expected)
    assert segment_map.dtype == segments.dtype == np.int32


def test_hidden_stuff_has_no_segment_and_a_thing_without_instance_is_void():
    bed, wall, sky = 8, 1, 3  # Labels of the semantic map.
    labels = np.array([[wall, sky, bed, 0]], np.uint8)
    instances = np.zeros((1, 4, 3), np.uint8)
    instances[0, 1] = (4, 7, 0)  # A person that covers the sky completely.
    segment_map, segments = ade20k.panoptic_segments(labels, instances, 'a.png')
    np.testing.assert_array_equal(segment_map, [[1, 2, 0, 0]])
    assert [CATEGORIES.names[label] for label in segments] == ['wall', 'person']


@pytest.mark.parametrize('categories', [(4, 5), (0, 0), (101, 101)])
def test_an_instance_without_exactly_one_valid_category_is_an_error(categories):
    instances = np.zeros((2, 2, 3), np.uint8)
    instances[0] = [(category, 9, 0) for category in categories]
    with pytest.raises(ValueError) as error:
        ade20k.panoptic_segments(np.ones((2, 2), np.uint8), instances, 'a.png')
    assert str(error.value).startswith('a.png: instance 9 (green channel) has the categories')


def test_both_kinds_are_read_from_the_tree_as_loops_read_it(tmp_path):
    make_tree(tmp_path, num_train=3, num_val=2)
    panoptic, semantic = (Ade20k(tmp_path, 'train', kind) for kind in ('panoptic', 'semantic'))
    assert len(panoptic) == len(semantic) == 3 and len(Ade20k(tmp_path, 'val', 'panoptic')) == 2
    for index in range(3):
        name = f'ADE_train_{index + 1:08}'
        image, labels, instances = (
            cv2.imread(str(tmp_path / folder / 'training' / name) + extension, -1)
            for folder, extension in (
                ('ADEChallengeData2016/images', '.jpg'),
                ('ADEChallengeData2016/annotations', '.png'),
                ('annotations_instance', '.png'),
            )
        )
        segment_map, segments = panoptic_by_loops(labels, instances[..., ::-1])
        example = panoptic[index]
        assert example.image_id == name and not example.crowd.any()
        np.testing.assert_array_equal(example.image, image[..., ::-1])
        np.testing.assert_array_equal(example.segment_map, segment_map)
        np.testing.assert_array_equal(example.labels, segments)
        example = semantic[index]
        np.testing.assert_array_equal(
            np.append(-1, example.labels)[example.segment_map] + 1, labels
        )


def test_archives_and_folders_give_the_same_examples(tmp_path):
    folder, archives = (make_tree(tmp_path / name) for name in ('folder', 'archives'))
    to_archives(archives)
    for index in range(4):
        (encoded, left), (same, right) = (
            Ade20k(source, 'train', 'panoptic').read(index) for source in (folder, archives)
        )
        assert encoded == same
        np.testing.assert_array_equal(left.segment_map, right.segment_map)
        np.testing.assert_array_equal(left.labels, right.labels)


def test_real_annotations_are_read(tmp_path):
    add_real_annotations(tmp_path)
    images = Ade20k(tmp_path, 'val', 'semantic')
    assert [example.image.shape[:2] for example in images] == [(512, 683), (364, 500), (300, 400)]
    # 0 in the file is void, so labels are one less than in the file.
    np.testing.assert_array_equal(images[1].labels, [0, 1, 2, 4, 13, 17])
    names = [CATEGORIES.names[label] for label in images[1].labels]
    assert names == ['wall', 'building', 'sky', 'tree', 'earth', 'plant']
    assert (images[1].segment_map > 0).mean() > 0.9


def test_missing_annotations_are_an_error_or_skipped(tmp_path):
    make_tree(tmp_path, num_train=3)
    (tmp_path / 'annotations_instance/training/ADE_train_00000002.png').unlink()
    with pytest.raises(FileNotFoundError, match='ADE_train_00000002.png does not exist'):
        Ade20k(tmp_path, 'train', 'panoptic')
    images = Ade20k(tmp_path, 'train', 'panoptic', allow_partial=True)
    assert [images[i].image_id[-1] for i in range(len(images))] == ['1', '3']
    assert len(Ade20k(tmp_path, 'train', 'semantic')) == 3


def test_the_error_for_another_release_names_the_right_one(tmp_path):
    (tmp_path / 'ADE20K_2021_17_01/images/ADE/training').mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match='ADEChallengeData2016.*not from the full ADE20K_2021'
    ):
        Ade20k(tmp_path, 'train', 'panoptic')


def test_a_label_above_150_is_an_error(tmp_path):
    make_tree(tmp_path)
    path = tmp_path / 'ADEChallengeData2016/annotations/training/ADE_train_00000001.png'
    cv2.imwrite(str(path), np.full((60, 80), 151, np.uint8))
    with pytest.raises(ValueError, match='ADE_train_00000001.png has label 151'):
        Ade20k(tmp_path, 'train', 'panoptic')[0]
