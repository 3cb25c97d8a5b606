"""Tests of `simcis_jax.data.decode`: images are decoded exactly as stored, or rejected."""

import pathlib
import struct
import zlib

import cv2
import numpy as np
import pytest
from data.packed_png import png

from simcis_jax.data import decode

HERE = pathlib.Path(__file__).parent
LABELS = np.array(
    [[0, 1, 2, 3, 3], [1, 0, 3, 2, 1]]
)  # Fits 2 bits; 5 columns do not fill whole bytes.


def assert_one_line(error, *words):
    message = str(error.value)
    assert '\n' not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize('depth', [2, 4, 8, 16])
def test_grey_labels_are_read_as_stored_at_every_depth(depth):
    labels = decode.decode_labels(png(LABELS, depth=depth, color_type=0), 'a.png')
    np.testing.assert_array_equal(labels, LABELS)
    assert labels.dtype == (np.uint16 if depth == 16 else np.uint8)


@pytest.mark.parametrize('depth', [2, 4, 8])
def test_labels_of_a_palette_png_are_its_indices(depth):
    encoded = png(LABELS, depth=depth, color_type=3, palette=bytes(range(200, 212)))
    np.testing.assert_array_equal(decode.decode_labels(encoded, 'a.png'), LABELS)


def test_one_bit_labels_are_0_and_1():
    for color_type, palette in ((0, b''), (3, bytes(6))):
        encoded = png(LABELS % 2, depth=1, color_type=color_type, palette=palette)
        np.testing.assert_array_equal(decode.decode_labels(encoded, 'a.png'), LABELS % 2)


def test_a_palette_png_of_ids_is_decoded_to_its_colours():
    palette = bytes(range(200, 212))
    colors = decode.decode_colors(png(LABELS, depth=2, color_type=3, palette=palette), 'a.png')
    np.testing.assert_array_equal(colors, 200 + 3 * LABELS[..., None] + np.arange(3))


@pytest.mark.parametrize('color_type', [2, 6])
def test_a_colour_png_is_rejected_as_labels(color_type):
    pixels = np.repeat(LABELS[..., None], 3 if color_type == 2 else 4, axis=-1)
    with pytest.raises(ValueError) as error:
        decode.decode_labels(png(pixels, depth=8, color_type=color_type), 'a.png')
    assert_one_line(error, 'a.png is a colour PNG', 'one channel')


@pytest.mark.parametrize(('depth', 'color_type', 'word'), [(8, 0, 'grey'), (16, 2, '16-bit')])
def test_a_png_without_8_bit_colours_is_rejected_as_ids(depth, color_type, word):
    pixels = LABELS if color_type == 0 else np.repeat(LABELS[..., None], 3, axis=-1)
    with pytest.raises(ValueError) as error:
        decode.decode_colors(png(pixels, depth=depth, color_type=color_type), 'a.png')
    assert_one_line(error, f'a.png is a {word} PNG')


def test_a_jpeg_is_rejected_as_labels():
    encoded = cv2.imencode('.jpg', LABELS.astype(np.uint8))[1].tobytes()
    with pytest.raises(ValueError) as error:
        decode.decode_labels(encoded, 'a.jpg')
    assert_one_line(error, 'a.jpg', 'not a PNG')


def test_a_png_with_any_bit_flipped_is_rejected():
    encoded = png(LABELS, depth=8, color_type=0)
    for position in range(len(encoded)):
        flipped = bytearray(encoded)
        flipped[position] ^= 1 << position % 8
        with pytest.raises(ValueError, match='a.png'):
            decode.decode_labels(bytes(flipped), 'a.png')


def test_an_absurd_size_in_the_header_is_an_error():
    encoded = png(np.zeros((1, 1), int), depth=8, color_type=0)
    header = struct.pack('>IIBBBBB', 2**30, 2**30, 8, 0, 0, 0, 0)
    checksum = struct.pack('>I', zlib.crc32(b'IHDR' + header))
    encoded = encoded[:16] + header + checksum + encoded[33:]
    for read in (decode.decode_labels, decode.decode_image):
        with pytest.raises(ValueError) as error:
            read(encoded, 'a.png')
        assert_one_line(error, 'a.png', 'cannot be decoded')


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
@pytest.mark.parametrize('share', [0, 0.01, 0.6])
def test_a_truncated_image_is_an_error(tmp_path, extension, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    encoded = cv2.imencode(extension, noise)[1].tobytes()
    path = tmp_path / f'picture{extension}'
    path.write_bytes(encoded[: int(share * len(encoded))])
    with pytest.raises(ValueError) as error:
        decode.read_image(path)
    assert_one_line(error, f'picture{extension}', 'cannot be decoded')


def test_a_grey_image_is_converted_to_rgb(tmp_path):
    cv2.imwrite(str(tmp_path / 'grey.png'), np.full((2, 3), 90, np.uint8))
    image = decode.read_image(tmp_path / 'grey.png')
    assert image.shape == (2, 3, 3) and (image == 90).all()


def test_a_cmyk_image_is_converted_to_rgb():
    image = decode.read_image(HERE / 'cmyk_red_8x6.jpg')
    assert image.shape == (6, 8, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - [255, 0, 0]).max() < 12


def test_exif_rotation_is_ignored(tmp_path):
    encoded = cv2.imencode('.jpg', np.zeros((2, 6, 3), np.uint8))[1].tobytes()
    # One TIFF tag: 0x0112 orientation, type SHORT, count 1, value 6 (a quarter turn).
    tiff = b'II*\0' + struct.pack('<IHHHIHHI', 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b'Exif\0\0' + tiff
    marker = b'\xff\xe1' + struct.pack('>H', len(exif) + 2) + exif
    path = tmp_path / 'turned.jpg'
    path.write_bytes(encoded[:2] + marker + encoded[2:])
    assert cv2.imread(str(path)).shape == (6, 2, 3)  # OpenCV's default applies the orientation.
    assert decode.read_image(path).shape == (2, 6, 3)


def test_a_file_that_cannot_be_read_is_named():
    path = pathlib.Path('/proc/self/mem')  # A file that always fails to read at offset 0.
    if not path.is_file():
        pytest.skip('only where /proc is')
    with pytest.raises(OSError) as error:
        decode.read_bytes(path)
    assert_one_line(error, '/proc/self/mem cannot be read')


def test_a_path_that_no_disk_can_have_is_named():
    with pytest.raises(OSError, match='cannot be read') as error:
        decode.read_bytes('a' * 5000)
    assert_one_line(error, 'aaa cannot be read')
