"""Reads the size of an image from its file header, without decoding it."""

from __future__ import annotations

import os
import pathlib
from typing import BinaryIO

from simcis_jax.data import decode
from simcis_jax.errors import InputError

# JPEG segments with the size: SOF0 to SOF15, except for three codes with other meanings.
_START_OF_FRAME = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def picture_size(path: str | os.PathLike) -> tuple[int, int]:
    """Returns the height and width of an image as stored; EXIF orientation is ignored.

    Only the header of PNG and JPEG files is read; files of other formats are decoded.

    Raises:
        MissingFileError: there is no such file.
        FileError: it cannot be read.
        InputError: it is not an image.
    """
    try:
        with pathlib.Path(path).open('rb') as file:
            size = _header_size(file)
    except (OSError, ValueError):  # A name with NUL is a ValueError.
        size = None  # `read_image` raises the error to show.
    return size or decode.read_image(path).shape[:2]


def check_listed_size(
    path: str | os.PathLike, listed: tuple[int, int], where: str | os.PathLike
) -> None:
    """Checks that an image exists and has the listed size.

    Args:
        path: the image file.
        listed: expected height and width.
        where: the file that lists this size, for error messages.

    Raises:
        MissingFileError: there is no such file.
        FileError: it cannot be read.
        InputError: it is not an image, or has another size.
    """
    found = picture_size(path)
    if found != tuple(listed):
        raise InputError(
            f'{path} is {decode.size_text(found)} pixels (width x height) and listed as '
            f'{decode.size_text(listed)} in {where}; replace the picture or correct the list.'
        )


def _header_size(file: BinaryIO) -> tuple[int, int] | None:
    """Height and width from the header of a PNG or JPEG; None for other files."""
    start = file.read(24)
    if start.startswith(decode.PNG_SIGNATURE) and start[12:16] == b'IHDR' and len(start) == 24:
        return int.from_bytes(start[20:24], 'big'), int.from_bytes(start[16:20], 'big')
    if not start.startswith(b'\xff\xd8'):
        return None
    position = 2
    while True:
        file.seek(position)
        header = file.read(9)  # Marker, length, precision, height, width.
        if len(header) < 9 or header[0] != 0xFF:
            return None
        if header[1] == 0xFF:  # A fill byte.
            position += 1
        elif header[1] in _START_OF_FRAME:
            size = int.from_bytes(header[5:7], 'big'), int.from_bytes(header[7:9], 'big')
            return size if all(size) else None
        else:
            position += 2 + int.from_bytes(header[2:4], 'big')
