"""Tests that sizes read from file headers are those of the decoded images."""

import cv2
import numpy as np
import pytest
from data.packed_png import png
from data.test_robustness import with_exif

from simcis_jax.data import decode
from simcis_jax.data.picture_size import check_listed_size, picture_size

PICTURE = np.random.default_rng(0).integers(0, 256, (21, 34, 3), dtype=np.uint8)


def jpeg(*options):
    return cv2.imencode('.jpg', PICTURE, options)[1].tobytes()


def with_large_segments(encoded):
    """Inserts 130 kB of comments and a fill byte before the segment with the size of a JPEG."""
    comment = b'\xff\xfe\xff\xff' + bytes(65533)
    return encoded[:2] + 2 * comment + b'\xff' + encoded[2:]


FILES = {
    'a.png': cv2.imencode('.png', PICTURE)[1].tobytes(),
    'grey.png': png(PICTURE[..., 0] % 16, depth=4, color_type=0),
    'a.jpg': jpeg(),
    'progressive.jpg': jpeg(cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    'restarts.jpg': jpeg(cv2.IMWRITE_JPEG_RST_INTERVAL, 1),
    'turned.jpg': with_exif(jpeg()),
    'large.jpg': with_large_segments(jpeg()),
    'a.bmp': cv2.imencode('.bmp', PICTURE)[1].tobytes(),
    'a.webp': cv2.imencode('.webp', PICTURE)[1].tobytes(),
}


@pytest.mark.parametrize('name', FILES)
def test_the_size_is_that_of_the_decoded_image(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    assert decode.read_image(path).shape[:2] == picture_size(path) == (21, 34)


@pytest.mark.parametrize('name', ['a.png', 'a.jpg', 'large.jpg'])
def test_pixels_are_not_decoded(tmp_path, name, monkeypatch):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    monkeypatch.setattr(decode, 'read_image', None)
    assert picture_size(path) == (21, 34)


@pytest.mark.parametrize('content', [b'', FILES['a.jpg'][:30], FILES['a.png'][:20], b'no picture'])
def test_a_file_that_is_not_an_image_is_an_error(tmp_path, content):
    path = tmp_path / 'a.jpg'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='a.jpg .* cannot be decoded'):
        picture_size(path)


def test_an_image_with_another_size_than_listed_is_an_error(tmp_path):
    path = tmp_path / 'a.png'
    path.write_bytes(FILES['a.png'])
    check_listed_size(path, (21, 34), 'list.json')
    with pytest.raises(ValueError) as error:
        check_listed_size(path, (34, 21), 'list.json')
    message = str(error.value)
    assert f'{path} is 34x21 pixels' in message and 'listed as 21x34 in list.json' in message
    with pytest.raises(FileNotFoundError, match='b.png does not exist'):
        check_listed_size(tmp_path / 'b.png', (21, 34), 'list.json')


def test_a_name_that_no_file_can_have_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='does not exist'):
        picture_size(tmp_path / 'a\0b.png')
