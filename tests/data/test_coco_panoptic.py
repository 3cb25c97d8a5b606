"""Tests of `CocoPanoptic` on small data sets written to a temporary folder."""

import json
import pickle

import cv2
import numpy as np
import pytest

from simcis_jax.data import coco_panoptic, source
from simcis_jax.types import Categories

IDS = np.array([[0, 7, 7, 7], [300, 300, 7, 7], [70000, 70000, 70000, 70000]])


def write(root, *, ids=IDS, edit=None):
    """Writes one 4x3 image, its PNG and the JSON; `edit` changes the JSON's content first."""
    (root / 'images/val').mkdir(parents=True)
    (root / 'panoptic_val').mkdir()
    image = np.zeros((3, 4, 3), np.uint8)
    image[..., 0] = 250  # Red in RGB.
    cv2.imwrite(str(root / 'images/val/a.png'), image[..., ::-1])
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    cv2.imwrite(str(root / 'panoptic_val/a.png'), colors[..., ::-1])
    content = {
        'images': [{'id': 5, 'file_name': 'a.png', 'width': 4, 'height': 3}],
        'annotations': [
            {
                'image_id': 5,
                'file_name': 'a.png',
                'segments_info': [
                    {'id': 70000, 'category_id': 9, 'iscrowd': 0},
                    {'id': 7, 'category_id': 2, 'iscrowd': 0},
                    {'id': 300, 'category_id': 2, 'iscrowd': 1},
                ],
            }
        ],
        'categories': [
            {'id': 9, 'name': 'road', 'isthing': 0, 'color': [1, 2, 3]},
            {'id': 2, 'name': 'car', 'isthing': 1, 'color': [4, 5, 6]},
            {'id': 4, 'name': 'bus', 'isthing': 1},
        ],
    }
    if edit is not None:
        edit(content)
    (root / 'panoptic_val.json').write_text(json.dumps(content))
    return root


def open_split(root):
    return coco_panoptic.coco_panoptic_split(root, 'val')


def assert_one_line(error, *words):
    message = str(error.value)
    assert '\n' not in message
    for word in words:
        assert word in message


def test_labels_are_contiguous_and_sorted_by_category_id(tmp_path):
    categories = open_split(write(tmp_path)).categories
    assert categories.names == ('car', 'bus', 'road')
    assert categories.is_thing == (True, True, False)
    assert categories.colors[0] == (4, 5, 6) and categories.colors[2] == (1, 2, 3)


def test_categories_without_colours_get_distinct_ones(tmp_path):
    def edit(content):
        content['categories'] = [
            {'id': k, 'name': f'class {k}', 'isthing': 1} for k in range(1, 151)
        ]

    assert len(set(open_split(write(tmp_path, edit=edit)).categories.colors)) == 150


def test_an_example_holds_what_was_written(tmp_path):
    images = open_split(write(tmp_path))
    example = images[0]
    assert isinstance(images, source.Source) and len(images) == 1 and example.image_id == 5
    assert (example.image == [250, 0, 0]).all()
    np.testing.assert_array_equal(example.segment_map, [[0, 1, 1, 1], [2, 2, 1, 1], [3, 3, 3, 3]])
    np.testing.assert_array_equal(example.labels, [0, 0, 2])
    np.testing.assert_array_equal(example.crowd, [False, True, False])


def test_classes_and_size_come_from_the_json_and_crowds_do_not_count(tmp_path):
    def edit(content):
        content['annotations'][0]['segments_info'][1]['category_id'] = 4

    root = write(tmp_path, edit=edit)
    (root / 'panoptic_val/a.png').unlink()
    assert open_split(root).classes_of(0) == {1, 2}
    assert sorted(open_split(root).segments_of(0)) == [1, 2]
    assert open_split(root).size_of(0) == (3, 4)


def test_image_bytes_are_the_size_of_the_file(tmp_path):
    root = write(tmp_path)
    (file,) = (root / 'images/val').iterdir()
    assert open_split(root).image_bytes(0) == file.stat().st_size
    file.unlink()
    with pytest.raises(FileNotFoundError, match='does not exist'):
        open_split(root).image_bytes(0)


def training_categories(*names, **changes):
    """Four categories of a training split; `write` lists the last three."""
    names = names or ('sky', 'car', 'bus', 'road')
    columns = {'is_thing': (False, True, True, False), 'ids': (1, 2, 4, 9), **changes}
    return Categories(names, colors=((0, 0, 0),) * 4, **columns)


def test_labels_are_those_of_the_training_split(tmp_path):
    root, training = write(tmp_path), training_categories()
    alone, images = (coco_panoptic.coco_panoptic_split(root, 'val', c) for c in (None, training))
    np.testing.assert_array_equal(alone[0].labels, [0, 0, 2])
    np.testing.assert_array_equal(images[0].labels, [1, 1, 3])
    assert images.classes_of(0) == {1, 3} and images.categories == training


@pytest.mark.parametrize(
    ('training', 'words'),
    [
        (
            training_categories('sky', 'cart', 'bus', 'road'),
            "category 2 is 'car' (a thing) here and 'cart' (a thing) in the training split",
        ),
        (
            training_categories(is_thing=(False,) * 4),
            "category 2 is 'car' (a thing) here and 'car' (stuff) in the training split",
        ),
        (
            training_categories(ids=(1, 2, 3, 4)),
            "category 4 is 'bus' (a thing) here and 'road' (stuff) in the training split",
        ),
        (
            training_categories(ids=(1, 2, 4, 8)),
            "category 9 is 'road' (stuff) here and missing in the training split",
        ),
    ],
)
def test_categories_that_contradict_the_training_split_are_an_error(tmp_path, training, words):
    with pytest.raises(ValueError) as error:
        coco_panoptic.coco_panoptic_split(write(tmp_path), 'val', training)
    assert_one_line(error, 'panoptic_val.json', words)


def test_a_pickled_source_reads_the_same(tmp_path):
    images = open_split(write(tmp_path))
    copy = pickle.loads(pickle.dumps(images))
    np.testing.assert_array_equal(copy[0].segment_map, images[0].segment_map)


@pytest.mark.parametrize('missing', ['images/val', 'panoptic_val', 'panoptic_val.json'])
def test_a_missing_file_or_folder_is_an_error(tmp_path, missing):
    root = write(tmp_path)
    (root / missing).rename(root / 'elsewhere')
    with pytest.raises(FileNotFoundError) as error:
        open_split(root)
    assert_one_line(error, str(root / missing), 'does not exist')


def test_a_missing_image_is_an_error(tmp_path):
    root = write(tmp_path)
    (root / 'images/val/a.png').unlink()
    with pytest.raises(FileNotFoundError) as error:
        open_split(root)[0]
    assert_one_line(error, 'images/val/a.png', 'does not exist')


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('{"images": [', 'is not JSON'),
        (b'\xff\xfe\x00', 'is not JSON'),
        ('[]', 'a JSON object is needed'),
        ('{"images": [], "annotations": []}', "field 'categories' is None"),
    ],
)
def test_an_invalid_json_file_is_an_error(tmp_path, text, words):
    root = write(tmp_path)
    content = text if isinstance(text, bytes) else text.encode()
    (root / 'panoptic_val.json').write_bytes(content)
    with pytest.raises(ValueError) as error:
        open_split(root)
    assert_one_line(error, 'panoptic_val.json', words)


def annotation(content):
    return content['annotations'][0]


@pytest.mark.parametrize(
    ('edit', 'words'),
    [
        (lambda c: c.pop('images'), ("field 'images'",)),
        (lambda c: c['images'][0].pop('file_name'), ('images[0]', "'file_name'")),
        (lambda c: c['images'][0].update(height='3'), ('images[0]', "'height'")),
        (lambda c: annotation(c).pop('segments_info'), ('annotations[0]', "'segments_info'")),
        (lambda c: annotation(c)['segments_info'][0].pop('id'), ('annotations[0]', "'id'")),
        (lambda c: annotation(c).update(image_id=6), ('annotations[0]', 'image_id 6')),
        (
            lambda c: annotation(c)['segments_info'][0].update(category_id=77),
            ('annotations[0]', 'category ids [77]'),
        ),
        (
            lambda c: annotation(c)['segments_info'][0].update(id=7),
            ('annotations[0]', '[7, 7, 300]'),
        ),
        (lambda c: c['categories'][0].pop('isthing'), ('categories[0]', "'isthing'")),
        (lambda c: c['categories'][0].update(isthing=2), ('categories[0]', "'isthing'")),
        (lambda c: c['categories'][0].update(color='red'), ('categories[0]', "'color'")),
        (lambda c: c['categories'][0].update(color=[1, 2, 256]), ('categories[0]', "'color'")),
        (lambda c: c['categories'][0].update(name='bus'), ("name 'bus'", 'twice')),
        (lambda c: c['categories'].clear(), ('categories is empty',)),
        (lambda c: c['images'].append(c['images'][0]), ('images[1]', 'id 5 occurs twice')),
        (lambda c: c['images'][0].update(width=2**40), ('images[0]', 'width 1099511627776 must')),
        (lambda c: c['images'][0].update(height=0), ('images[0]', 'height 0 and width')),
        (lambda c: c['annotations'].append(annotation(c)), ('annotations[1]', 'annotated twice')),
        (
            lambda c: annotation(c)['segments_info'][0].update(id=2**24),
            ('annotations[0]', '[7, 300, 16777216]'),
        ),
        (
            lambda c: annotation(c)['segments_info'][0].update(iscrowd='0'),
            ('annotations[0]', "'iscrowd'"),
        ),
        (
            lambda c: annotation(c)['segments_info'][0].update(id=True),
            ('annotations[0]', "'id' is True"),
        ),
        (lambda c: c['categories'][0].update(id=2), ('category id 2', 'twice')),
        (lambda c: c['categories'].insert(0, 3), ('categories[0]', "'id'")),
    ],
)
def test_an_invalid_field_is_named(tmp_path, edit, words):
    with pytest.raises(ValueError) as error:
        open_split(write(tmp_path, edit=edit))
    assert_one_line(error, 'panoptic_val.json', *words)


def test_a_listed_segment_without_pixels_is_an_error(tmp_path):
    root = write(tmp_path, ids=np.where(IDS == 300, 7, IDS))
    with pytest.raises(ValueError) as error:
        open_split(root)[0]
    assert_one_line(error, 'panoptic_val/a.png', 'ids 300 are in segments_info but not in the PNG')


def test_a_segment_id_that_is_not_listed_is_an_error(tmp_path):
    root = write(tmp_path, ids=np.where(IDS == 0, 99999, IDS))
    with pytest.raises(ValueError) as error:
        open_split(root)[0]
    assert_one_line(
        error, 'panoptic_val/a.png', 'ids 99999 are in the PNG but not in segments_info'
    )


def test_different_sizes_of_image_and_png_are_an_error(tmp_path):
    root = write(tmp_path, ids=IDS[:, [0, 1, 2, 3, 3]])
    with pytest.raises(ValueError) as error:
        open_split(root)[0]
    assert_one_line(error, 'panoptic_val/a.png is 5x3', '4x3')


def test_many_images_are_listed_once_and_sent_to_workers_in_few_bytes(tmp_path):
    number, rng = 200, np.random.default_rng(0)
    segments = [
        [
            {
                'id': k + 1,
                'category_id': int(rng.choice([2, 4, 9])),
                'iscrowd': int(rng.random() < 0.3),
            }
            for k in range(rng.integers(0, 12))
        ]
        for _ in range(number)
    ]

    def edit(content):
        content['images'] = [
            {'id': i, 'file_name': f'{i:012}.jpg', 'width': 4 + i, 'height': 3}
            for i in range(number)
        ]
        content['annotations'] = [
            {'image_id': i, 'file_name': f'{i:012}.png', 'segments_info': segments[i]}
            for i in range(number)
        ]

    images = open_split(write(tmp_path, edit=edit))
    pickled = len(pickle.dumps(images))
    label_of = {2: 0, 4: 1, 9: 2}
    for index in range(number):
        kept = [entry for entry in segments[index] if not entry['iscrowd']]
        expected = {label_of[entry['category_id']] for entry in kept}
        assert images.classes_of(index) == expected
        assert images.classes_of(index) is images.classes_of(index)
        assert images.size_of(index) == (3, 4 + index)
    assert len(pickle.dumps(images)) == pickled  # The classes do not travel.
    total = sum(map(len, segments))
    assert pickled < 9 * total + 64 * number + 2000
    copy = pickle.loads(pickle.dumps(images))
    assert [copy.classes_of(i) for i in range(number)] == [
        images.classes_of(i) for i in range(number)
    ]
