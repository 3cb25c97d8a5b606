"""Tests of the format of prepared data sets, on synthetic examples."""

import json
import pickle
import resource
import time

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from fake_store import fake_store  # noqa: F401

from simcis_jax import types
from simcis_jax.data import open_source, pipeline, prepared, source
from simcis_jax.data.source import Example
from simcis_jax.runtime.object_store import Store

CATEGORIES = types.Categories(
    names=('sky', 'car', 'bus'),
    is_thing=(False, True, True),
    colors=((1, 2, 3), (4, 5, 6), (7, 8, 9)),
)


def make_example(number):
    """An encoded image and its example: a segment of class number % 3, a crowd of class 1."""
    image = np.full((4, 6, 3), number % 256, np.uint8)
    segment_map = np.zeros((4, 6), np.int32)
    segment_map[:2], segment_map[2, :3] = 1, 2
    example = Example(
        image=image,
        segment_map=segment_map,
        labels=np.array([number % 3, 1], np.int32),
        crowd=np.array([False, True]),
        image_id=f'image {number}',
    )
    return cv2.imencode('.png', image)[1].tobytes(), example


def write(root, counts):
    folder = root / 'tiny/1.0.0'
    folder.mkdir(parents=True)
    written = {
        split: prepared.write_split(
            folder, 'tiny', split, (prepared.to_record(*make_example(i)) for i in range(count))
        )
        for split, count in counts.items()
    }
    prepared.write_metadata(folder, CATEGORIES, written, {}, description='Tiny.')
    return root / 'tiny'


def assert_one_line(error, *words):
    message = str(error.value)
    assert '\n' not in message
    for word in words:
        assert word in message


def test_examples_are_read_as_they_were_written(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, '_IMAGES_PER_FILE', 4)
    root = write(tmp_path, {'train': 9, 'val': 2})
    names = [path.name for path in sorted((root / '1.0.0').glob('*train*'))]
    assert names == [f'tiny-train.array_record-0000{i}-of-00003' for i in range(3)]
    images = prepared.Prepared(root, 'train')
    assert isinstance(images, source.Source) and images.name == 'tiny_train'
    assert images.categories == CATEGORIES and len(images) == 9
    for index in (8, 0, 3, 4):  # Random access, across file boundaries.
        expected, example = make_example(index)[1], images[index]
        assert example.image_id == f'image {index}'
        for name in ('image', 'segment_map', 'labels', 'crowd'):
            value = getattr(example, name)
            np.testing.assert_array_equal(value, getattr(expected, name))
            assert value.dtype == getattr(expected, name).dtype
        assert images.classes_of(index) == {index % 3}
        assert images.segments_of(index) == [index % 3]
        assert images.size_of(index) == (4, 6)
        assert images.image_bytes(index) == len(make_example(index)[0])
    with pytest.raises(IndexError):
        images[9]


def test_an_example_without_segments_can_be_stored(tmp_path):
    _, example = make_example(0)
    empty = Example(
        example.image, 0 * example.segment_map, example.labels[:0], example.crowd[:0], 'empty'
    )
    record = prepared.to_record(make_example(0)[0], empty)
    folder = tmp_path / '1.0.0'
    folder.mkdir()
    written = prepared.write_split(folder, 'tiny', 'val', [record])
    prepared.write_metadata(folder, CATEGORIES, {'val': written}, {}, description='')
    images = prepared.Prepared(folder, 'val')
    assert images[0].labels.shape == (0,) and images.classes_of(0) == frozenset()


def test_tfds_can_read_the_data_set(tmp_path):
    write(tmp_path, {'train': 3})
    records = tfds.data_source('tiny', split='train', data_dir=tmp_path)
    np.testing.assert_array_equal(records[2]['image'], make_example(2)[1].image)
    np.testing.assert_array_equal(records[2]['labels'], [2, 1])


def test_a_data_set_can_be_pickled_for_workers(tmp_path):
    images = prepared.Prepared(write(tmp_path, {'train': 5}), 'train')
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(images))[4].image, images[4].image)


@pytest.mark.slow
def test_worker_processes_give_the_same_batches_as_threads(tmp_path):
    images = prepared.Prepared(write(tmp_path, {'train': 20}), 'train')
    batches = []
    for num_workers in (0, 2):
        iterator = pipeline.train_iterator(
            images, images=dict.fromkeys(range(20), {0, 1, 2}), batch_size=4, seed=0,
            num_workers=num_workers, size=16, max_segments=4,
        )  # fmt: skip
        batches.append([next(iterator) for _ in range(7)])
        iterator.close()
    for left, right in zip(*batches, strict=True):
        np.testing.assert_array_equal(left.image, right.image)
        np.testing.assert_array_equal(left.targets.segment_map, right.targets.segment_map)


def test_the_newest_version_is_opened(tmp_path):
    root = write(tmp_path, {'train': 3})
    (root / '1.0.0').rename(root / '1.10.0')
    write(tmp_path, {'train': 1})
    assert len(prepared.Prepared(root, 'train')) == 3
    assert len(prepared.Prepared(root / '1.0.0', 'train')) == 1


def test_a_folder_without_a_data_set_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        prepared.Prepared(tmp_path / 'nowhere', 'train')
    assert_one_line(error, 'nowhere holds no prepared data set', 'simcis_jax.prepare')


def test_an_unknown_split_is_an_error(tmp_path):
    with pytest.raises(ValueError) as error:
        prepared.Prepared(write(tmp_path, {'train': 1, 'val': 1}), 'test')
    assert_one_line(error, "['train', 'val'], not 'test'")


def test_damaged_records_are_an_error(tmp_path):
    root = write(tmp_path, {'train': 3})
    (path,) = (root / '1.0.0').glob('*train*')
    content = bytearray(path.read_bytes())
    position = content.index(b'image 1') if b'image 1' in content else 200
    content[position] ^= 255
    path.write_bytes(content)
    images = prepared.Prepared(root, 'train')
    with pytest.raises(OSError) as error:
        for index in range(3):
            images[index]
    assert_one_line(error, 'tiny/1.0.0: image', 'prepare the data set again')


def test_truncated_or_missing_files_are_an_error(tmp_path):
    root = write(tmp_path, {'train': 3})
    (path,) = (root / '1.0.0').glob('*train*')
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises((OSError, ValueError)) as error:
        prepared.Prepared(root, 'train')[0]
    assert_one_line(error, 'tiny/1.0.0', 'prepare the data set again')
    path.unlink()
    with pytest.raises((OSError, ValueError)) as error:
        prepared.Prepared(root, 'train')[0]
    assert_one_line(error, 'tiny/1.0.0', 'prepare the data set again')


def test_a_full_disk_is_an_error(tmp_path):
    image = np.random.default_rng(0).bytes(1_000_000)
    records = (prepared.to_record(image, make_example(0)[1]) for _ in range(8))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, hard))  # Limit of the size of a file.
    try:
        with pytest.raises(OSError) as error:
            prepared.write_split(tmp_path, 'tiny', 'train', records)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_one_line(error, 'train.part-0 cannot be written')


def test_metadata_with_another_number_of_images_is_an_error(tmp_path):
    root = write(tmp_path, {'train': 3})
    path = root / '1.0.0/metadata.json'
    content = json.loads(path.read_text())
    content['classes']['train'].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError) as error:
        prepared.Prepared(root, 'train')
    assert_one_line(error, '3 records of train, but its metadata lists 2')


def test_metadata_of_an_older_version_lists_no_segments(tmp_path):
    root = write(tmp_path, {'train': 3})
    path = root / '1.0.0/metadata.json'
    content = json.loads(path.read_text())
    del content['segments']
    path.write_text(json.dumps(content))
    images = prepared.Prepared(root, 'train')
    assert images.classes_of(2) == {2}
    with pytest.raises(ValueError) as error:
        images.segments_of(2)
    assert_one_line(error, '1.0.0 was prepared by an older version and does not list the segments')


@pytest.mark.slow
def test_twenty_thousand_images_open_in_two_seconds(tmp_path):
    root = write(tmp_path, {'train': 20_210})
    start = time.monotonic()
    images = prepared.Prepared(root, 'train')
    assert len(source.images_with(images, [2])) == 20_210 // 3
    assert time.monotonic() - start < 2


def test_a_prepared_data_set_in_an_object_store_is_copied_once(tmp_path, fake_store):  # noqa: F811
    root = write(tmp_path, {'train': 3, 'val': 2})
    store = Store('s3://bucket/sets/tiny')
    for path in root.rglob('*.*'):
        if path.is_file():
            store.upload(path, path.relative_to(root).as_posix())
    for split, count in (('train', 3), ('val', 2)):
        images = open_source('prepared', split, root='s3://bucket/sets/tiny')
        assert len(images) == count
        np.testing.assert_array_equal(images[1].image, make_example(1)[1].image)
    assert sorted(fake_store.downloads) == sorted(fake_store.files)  # Each file once.
