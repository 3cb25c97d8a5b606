"""Tests of the Shapes data set."""

import pickle

import numpy as np
import pytest

from simcis_jax.data import shapes, shapes_scene, source


def same(left, right):
    return (
        np.array_equal(left.image, right.image)
        and np.array_equal(left.segment_map, right.segment_map)
        and np.array_equal(left.labels, right.labels)
    )


@pytest.fixture(scope='module')
def images():
    return shapes.Shapes('train')


@pytest.fixture(scope='module')
def examples(images):
    return [images[index] for index in range(60)]


def test_shapes_is_a_source():
    assert isinstance(shapes.Shapes('val'), source.Source)


def test_an_image_does_not_depend_on_the_number_of_images():
    long, short = shapes.Shapes('train'), shapes.Shapes('train', num_images=8)
    last = short[7]
    assert same(long[7], last) and same(short[7], last)


def test_images_differ_between_splits_seeds_and_indices():
    pictures = [
        shapes.Shapes('train')[0],
        shapes.Shapes('train')[1],
        shapes.Shapes('val')[0],
        shapes.Shapes('train', seed=1)[0],
    ]
    assert len({picture.image.tobytes() for picture in pictures}) == 4


def test_a_pickled_source_draws_the_same_images():
    images = shapes.Shapes('val', size=32, seed=3)
    assert same(pickle.loads(pickle.dumps(images))[5], images[5])


def test_examples_have_the_documented_shapes_and_types(examples):
    for example in examples:
        assert example.image.shape == (64, 64, 3) and example.image.dtype == np.uint8
        assert example.segment_map.shape == (64, 64) and example.segment_map.dtype == np.int32
        assert example.labels.dtype == np.int32 and example.crowd.dtype == bool


def test_every_segment_is_visible_and_large_enough(examples):
    for example in examples:
        areas = np.bincount(example.segment_map.ravel(), minlength=len(example.labels) + 1)[1:]
        assert len(areas) == len(example.labels) and areas.min() >= 24


def test_hardly_any_pixels_are_void(examples):
    assert np.mean([np.mean(example.segment_map == 0) for example in examples]) < 0.002


def test_stuff_has_one_segment_per_class(images, examples):
    things = images.categories.is_thing
    for example in examples:
        stuff = [label for label in example.labels if not things[label]]
        assert len(stuff) == len(set(stuff)) >= 1


def test_classes_and_sizes_agree_with_the_rendered_examples(images, examples):
    for index, example in enumerate(examples):
        assert images.classes_of(index) == frozenset(example.labels.tolist())
        assert sorted(images.segments_of(index)) == sorted(example.labels.tolist())
        assert images.size_of(index) == example.image.shape[:2]


def test_mostly_hidden_things_have_no_segment(monkeypatch):
    def region(label, rows):
        alpha = np.zeros((64, 64), np.float32)
        alpha[rows, :10] = 1
        return shapes_scene.Region(label, alpha, np.eye(2, 3, dtype=np.float32))

    # 20 of 200 pixels (10 percent) of the rearmost thing are visible, and 80 of the middle one.
    things = [region(3, slice(0, 20)), region(4, slice(2, 22)), region(5, slice(10, 30))]
    monkeypatch.setattr(shapes_scene, 'draw_things', lambda rng, size: things)
    images = shapes.Shapes('train')
    assert images.classes_of(0) & {3, 4, 5} == {4, 5}


@pytest.mark.parametrize('label', range(12))
def test_every_class_is_neither_rare_nor_everywhere(images, label):
    share = np.mean([label in images.classes_of(index) for index in range(400)])
    low, high = (0.2, 0.4) if images.categories.is_thing[label] else (0.25, 0.75)
    assert low < share < high


def test_every_stage_of_the_protocol_8_2_has_things(images):
    is_thing = images.categories.is_thing
    assert [sum(is_thing[:8]), sum(is_thing[8:10]), sum(is_thing[10:])] == [5, 1, 2]


def test_colour_is_informative_but_not_sufficient(images):
    def mean_colors(source, count):
        pairs = [
            (label, example.image[example.segment_map == k].mean(axis=0))
            for example in (source[index] for index in range(count))
            for k, label in enumerate(example.labels, start=1)
        ]
        labels, colors = zip(*pairs, strict=True)
        return np.array(labels), np.array(colors)

    labels, colors = mean_colors(images, 300)
    centers = np.stack([colors[labels == label].mean(axis=0) for label in range(12)])
    labels, colors = mean_colors(shapes.Shapes('val'), 100)
    guesses = np.linalg.norm(colors[:, None] - centers, axis=-1).argmin(axis=1)
    # Well above chance (below 0.2 with 12 classes), but shape and texture are needed too.
    assert 0.6 < np.mean(guesses == labels) < 0.97


def test_images_can_have_any_size():
    assert shapes.Shapes('val', size=96)[0].image.shape == (96, 96, 3)


def test_an_index_past_the_end_is_an_index_error():
    with pytest.raises(IndexError, match='shapes_val has images 0 to 199, not 200'):
        shapes.Shapes('val')[200]


def test_an_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="no split 'test'; use 'train' or 'val'"):
        shapes.Shapes('test')
