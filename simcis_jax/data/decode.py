"""Decodes image files to arrays: images, maps of class labels and maps of segment ids.

EXIF orientation is ignored unless the caller asks for upright images, because annotations refer to
the pixels as stored. Truncated files and damaged PNGs raise an error; damage inside a JPEG shows in
the picture only.
"""

from __future__ import annotations

import os
import pathlib
import struct
import zlib
from collections.abc import Sequence

import cv2
import numpy as np

from simcis_jax.errors import InputError, MissingFileError, reading

PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_GREY, _RGB, _PALETTE, _RGBA = 0, 2, 3, 6  # Colour types of PNG.


def read_image(path: str | os.PathLike, *, upright: bool = False) -> np.ndarray:
    """Reads an image file; see `decode_image`."""
    return decode_image(read_bytes(path), path, upright=upright)


def read_bytes(path: str | os.PathLike) -> bytes:
    """Reads the content of a file.

    Raises:
        MissingFileError: there is no such file.
        FileError: it cannot be read.
    """
    path = pathlib.Path(path)
    with reading(path):
        if not path.is_file():
            raise MissingFileError(f'{path} does not exist; check the folder and the file name.')
        return path.read_bytes()


def decode_image(encoded: bytes, where: object, *, upright: bool = False) -> np.ndarray:
    """Decodes an image to RGB [H, W, 3] uint8, also from grey, CMYK, palette, alpha or 16 bits.

    Args:
        encoded: the content of a JPEG, PNG or other image file.
        where: name of the file for error messages.
        upright: whether to rotate the image by its EXIF orientation.

    Raises:
        InputError: the file is empty, truncated or not an image.
    """
    as_stored = 0 if upright else cv2.IMREAD_IGNORE_ORIENTATION
    return _decode(encoded, cv2.IMREAD_COLOR_RGB | as_stored, where)


def decode_labels(encoded: bytes, where: object) -> np.ndarray:
    """Decodes a PNG of class labels to [H, W] uint8 or uint16: its grey values or palette indices.

    Raises:
        InputError: the file is not a complete PNG, or has colours instead of labels.
    """
    chunks = _png_chunks(encoded, where)
    depth, color_type = chunks[0][1][8:10]
    if color_type not in (_GREY, _PALETTE):
        raise InputError(
            f'{where} is a colour PNG; class labels need a PNG with one channel: grey, or a '
            'palette whose indices are the labels.'
        )
    # Without its palette and declared as grey, a palette PNG decodes to its indices.
    header = chunks[0][1][:9] + bytes([_GREY]) + chunks[0][1][10:]
    pixels = [(kind, data) for kind, data in chunks if kind == b'IDAT']
    encoded = _png([(b'IHDR', header), *pixels, (b'IEND', b'')])
    labels = _decode(encoded, cv2.IMREAD_UNCHANGED, where)
    # Grey values of 1, 2 and 4 bits were scaled to 0..255; this undoes it.
    return labels if depth >= 8 else labels // (255 // (2**depth - 1))


def decode_colors(encoded: bytes, where: object) -> np.ndarray:
    """Decodes a PNG whose colours encode ids of segments or instances to RGB [H, W, 3] uint8.

    Raises:
        InputError: the file is not a complete PNG, or does not have 8-bit colours.
    """
    depth, color_type = _png_chunks(encoded, where)[0][1][8:10]
    if color_type not in (_RGB, _PALETTE, _RGBA) or depth > 8:
        kind = 'grey' if color_type not in (_RGB, _RGBA) else f'{depth}-bit'
        raise InputError(f'{where} is a {kind} PNG; ids must be stored as 8-bit RGB colours.')
    return decode_image(encoded, where)


def size_text(shape: Sequence[int]) -> str:
    """Formats a shape [H, W, ...] as WIDTHxHEIGHT for messages."""
    return f'{shape[1]}x{shape[0]}'


def check_same_size(
    labels: Sequence[int], where: object, image: Sequence[int], image_name: str
) -> None:
    """Raises InputError if annotations and image differ in height or width; takes their shapes."""
    if tuple(labels[:2]) != tuple(image[:2]):
        raise InputError(
            f'{where} is {size_text(labels)} and {image_name} is {size_text(image)} pixels '
            '(width x height); both must be equal: write the PNG at the size of the image.'
        )


def _decode(encoded: bytes, flags: int, where: object) -> np.ndarray:
    try:
        buffer = np.frombuffer(encoded, np.uint8)
        picture = cv2.imdecode(buffer, flags) if encoded else None
    except cv2.error as error:  # For example, a header with an absurd size.
        picture, reason = None, error.err
    else:
        reason = 'it is truncated, damaged or not an image'
    if picture is None:
        raise InputError(
            f'{where} ({len(encoded)} bytes) cannot be decoded; {reason}: replace the file.'
        )
    return picture


def _png_chunks(encoded: bytes, where: object) -> list[tuple[bytes, bytes]]:
    """Splits a PNG into chunks (type, data), IHDR first, and verifies their checksums."""
    chunks, start = [], len(PNG_SIGNATURE)
    while encoded.startswith(PNG_SIGNATURE) and len(encoded) - start >= 12:
        length = int.from_bytes(encoded[start : start + 4], 'big')
        end = start + 8 + length
        checked, checksum = encoded[start + 4 : end], encoded[end : end + 4]
        if zlib.crc32(checked).to_bytes(4, 'big') != checksum:
            break
        chunks.append((checked[:4], checked[4:]))
        start = end + 4
    if not chunks or chunks[0][0] != b'IHDR' or len(chunks[0][1]) != 13 or chunks[-1][0] != b'IEND':
        raise InputError(
            f'{where} ({len(encoded)} bytes) cannot be decoded; it is truncated, damaged or not a '
            'PNG: replace the file.'
        )
    return chunks


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [PNG_SIGNATURE]
    for kind, data in chunks:
        checksum = zlib.crc32(kind + data)
        parts += [struct.pack('>I', len(data)), kind, data, struct.pack('>I', checksum)]
    return b''.join(parts)
