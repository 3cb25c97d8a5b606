"""From encoded pictures to arrays: images, class labels and segment ids, each by its own rules.

Every picture is read as it is stored: an EXIF orientation is ignored, because annotations refer to
the stored pixels, unless the caller asks for upright images. What cannot be read right is refused.
"""

from __future__ import annotations

import os
import pathlib
import struct
import zlib
from collections.abc import Sequence

import cv2
import numpy as np

from simcis_jax.errors import FileError, InputError, MissingFileError

_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_GREY, _RGB, _PALETTE, _RGBA = 0, 2, 3, 6  # Colour types of PNG.


def read_image(path: str | os.PathLike, *, upright: bool = False) -> np.ndarray:
    """Reads an image file; see `decode_image`."""
    return decode_image(read_bytes(path), path, upright=upright)


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a file.

    Raises:
        MissingFileError: there is no such file.
        FileError: it cannot be read.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise MissingFileError(f'{path} does not exist; check the folder and the file name.')
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f'{path} cannot be read ({error.strerror}).') from None


def decode_image(encoded: bytes, where: object, *, upright: bool = False) -> np.ndarray:
    """An image as RGB [H, W, 3] uint8; grey, CMYK, palette, alpha and 16 bits too.

    Args:
        encoded: the content of a JPEG, PNG or other image file.
        where: what errors call the file.
        upright: turn the image as its EXIF orientation says.

    Raises:
        InputError: the file is empty, cut off or no picture.
    """
    as_stored = 0 if upright else cv2.IMREAD_IGNORE_ORIENTATION
    return _decode(encoded, cv2.IMREAD_COLOR_RGB | as_stored, where)


def decode_labels(encoded: bytes, where: object) -> np.ndarray:
    """A PNG of class labels as stored, [H, W] uint8 or uint16: grey values or palette indices.

    Raises:
        InputError: the file is no whole PNG, or holds colours instead of labels.
    """
    chunks = _png_chunks(encoded, where)
    depth, color_type = chunks[0][1][8:10]
    if color_type not in (_GREY, _PALETTE):
        raise InputError(
            f'{where} is a PNG of colours; class labels need one channel: grey, or a palette whose '
            'indices are the labels.'
        )
    # Declared grey and stripped to its pixels, a palette PNG decodes to its indices.
    header = chunks[0][1][:9] + bytes([_GREY]) + chunks[0][1][10:]
    pixels = [(kind, data) for kind, data in chunks if kind == b'IDAT']
    encoded = _png([(b'IHDR', header), *pixels, (b'IEND', b'')])
    labels = _decode(encoded, cv2.IMREAD_UNCHANGED, where)
    # Decoders stretch grey of 1, 2 and 4 bits to 0..255.
    return labels if depth >= 8 else labels // (255 // (2**depth - 1))


def decode_colors(encoded: bytes, where: object) -> np.ndarray:
    """A PNG whose colours are data (segment ids, instances) as RGB [H, W, 3] uint8.

    Raises:
        InputError: the file is no whole PNG, or has no 8-bit colours.
    """
    depth, color_type = _png_chunks(encoded, where)[0][1][8:10]
    if color_type not in (_RGB, _PALETTE, _RGBA) or depth > 8:
        kind = 'grey' if color_type not in (_RGB, _RGBA) else f'{depth}-bit'
        raise InputError(f'{where} is a {kind} PNG; ids need a PNG of 8-bit RGB colours.')
    return decode_image(encoded, where)


def size_text(shape: Sequence[int]) -> str:
    """Width x height of a shape [H, W, ...] for messages."""
    return f'{shape[1]}x{shape[0]}'


def check_same_size(
    labels: Sequence[int], where: object, image: Sequence[int], image_name: str
) -> None:
    """Raises InputError if the shapes of annotations [H, W, ...] and image [H, W, ...] differ."""
    if tuple(labels[:2]) != tuple(image[:2]):
        raise InputError(
            f'{where} is {size_text(labels)} and {image_name} is {size_text(image)} pixels '
            '(width x height); both must be equal: write the PNG at the size of the image.'
        )


def _decode(encoded: bytes, flags: int, where: object) -> np.ndarray:
    try:
        buffer = np.frombuffer(encoded, np.uint8)
        picture = cv2.imdecode(buffer, flags) if encoded else None
    except cv2.error as error:  # A header that asks for an absurd size.
        picture, reason = None, error.err
    else:
        reason = 'it is cut off, damaged or no picture'
    if picture is None:
        raise InputError(
            f'{where} ({len(encoded)} bytes) cannot be decoded; {reason}: replace the file.'
        )
    return picture


def _png_chunks(encoded: bytes, where: object) -> list[tuple[bytes, bytes]]:
    """The chunks (type, data) of a PNG, IHDR first; their checksums hold."""
    chunks, start = [], len(_SIGNATURE)
    while encoded.startswith(_SIGNATURE) and len(encoded) - start >= 12:
        length = int.from_bytes(encoded[start : start + 4], 'big')
        end = start + 8 + length
        checked, checksum = encoded[start + 4 : end], encoded[end : end + 4]
        if zlib.crc32(checked).to_bytes(4, 'big') != checksum:
            break
        chunks.append((checked[:4], checked[4:]))
        start = end + 4
    if not chunks or chunks[0][0] != b'IHDR' or len(chunks[0][1]) != 13 or chunks[-1][0] != b'IEND':
        raise InputError(
            f'{where} ({len(encoded)} bytes) cannot be decoded; it is cut off, damaged or no PNG: '
            'replace the file.'
        )
    return chunks


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [_SIGNATURE]
    for kind, data in chunks:
        checksum = zlib.crc32(kind + data)
        parts += [struct.pack('>I', len(data)), kind, data, struct.pack('>I', checksum)]
    return b''.join(parts)
