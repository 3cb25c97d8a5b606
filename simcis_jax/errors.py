"""Errors that a user can cause and fix.

The commands show them as one line. Every other exception is a bug and keeps its traceback. A
message names the file, field or value, the rule that it breaks, and what to do.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator


class UserError(Exception):
    """Base of the errors that are shown without a traceback."""


class InputError(UserError, ValueError):
    """A value, or the content of a file, is invalid."""


class FileError(UserError, OSError):
    """A file or folder cannot be read or written."""


class MissingFileError(FileError, FileNotFoundError):
    """A file or folder does not exist."""


class StorageError(FileError):
    """The disk is full, read-only or broken, so that no other file can be written either."""


class NonfiniteError(UserError, FloatingPointError):
    """A loss or gradient is infinite or NaN."""


_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Context manager that turns an OSError while reading into an error that names the path.

    Raises:
        MissingFileError: the file or folder does not exist.
        FileError: it cannot be read.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise MissingFileError(f'{path} does not exist; check the path.') from None
    except NotADirectoryError:
        raise FileError(
            f'{path} must be a folder, but it or one of its parents is a file.'
        ) from None
    except IsADirectoryError:
        raise FileError(f'{path} is a folder, but a file is needed; check the path.') from None
    except OSError as error:
        raise FileError(f'{path} cannot be read ({error.strerror}).') from error


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Context manager that turns an OSError while writing into an error that names the path.

    Raises:
        StorageError: the disk is full, read-only or broken.
        FileError: it cannot be written for another reason.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        kind, way_out = FileError, 'choose another path'
        if error.errno in _STORAGE:
            kind, way_out = StorageError, 'free some space, or choose another disk'
        raise kind(f'{path} cannot be written ({error.strerror}); {way_out}.') from error


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Context manager that puts the path that its body works on before an InputError.

    Raises:
        InputError: that of the body, with the path.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f'{path}: {error}') from None
