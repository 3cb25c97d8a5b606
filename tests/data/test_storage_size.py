"""Tests of the byte counts of replayed images and labels."""

import cv2
import numpy as np
import pytest

from simcis_jax.data import storage_size
from simcis_jax.data.shapes import Shapes
from simcis_jax.data.source import Example


def decoded_map(example, classes, tmp_path, monkeypatch):
    """Decodes the segment map that was encoded; returns it and the size of the labels in bytes."""
    written = []
    encode = cv2.imencode
    monkeypatch.setattr(
        cv2, 'imencode', lambda kind, picture: written.append(picture) or encode(kind, picture)
    )
    total = storage_size.label_bytes(example, classes)
    path = tmp_path / 'map.png'
    cv2.imwrite(str(path), written[0])
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED), total - path.stat().st_size


def test_only_segments_of_the_given_classes_are_counted(tmp_path, monkeypatch):
    segment_map = np.array([[0, 1, 1], [2, 3, 4]], np.int32)
    labels, crowd = np.array([5, 7, 5, 5], np.int32), np.array([False, False, False, True])
    example = Example(np.zeros((2, 3, 3), np.uint8), segment_map, labels, crowd, 'x')
    found, rest = decoded_map(example, {5}, tmp_path, monkeypatch)
    np.testing.assert_array_equal(found, [[0, 1, 1], [0, 2, 0]])
    assert rest == 2 * 4


@pytest.mark.parametrize(('number', 'kind'), [(255, np.uint8), (300, np.uint16)])
def test_more_than_255_segments_need_16_bits(number, kind, tmp_path, monkeypatch):
    segment_map = np.arange(1, number + 1, dtype=np.int32).reshape(-1, 5)
    labels = np.zeros(number, np.int32)
    example = Example(None, segment_map, labels, np.zeros(number, bool), 'x')
    found, rest = decoded_map(example, {0}, tmp_path, monkeypatch)
    assert found.dtype == kind and rest == 4 * number
    np.testing.assert_array_equal(found, segment_map)


def test_an_image_without_a_file_counts_as_a_png(tmp_path):
    images = Shapes('train', size=32, num_images=3)
    cv2.imwrite(str(tmp_path / 'x.png'), images[1].image)
    assert images.image_bytes(1) == (tmp_path / 'x.png').stat().st_size
    labels = images.classes_of(1)
    expected = images.image_bytes(1) + storage_size.label_bytes(images[1], labels)
    assert storage_size.stored_bytes(images, 1, labels) == expected
