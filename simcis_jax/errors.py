"""Errors that a user can cause and mend.

The commands show them as one line. Every other exception is a fault of the program and keeps its
traceback. The message names the file, field or value, the rule that it breaks, and the way out.
"""

from __future__ import annotations


class UserError(Exception):
    """Base of the errors that are shown without a traceback."""


class InputError(UserError, ValueError):
    """A value, or the content of a file, is not what it must be."""


class FileError(UserError, OSError):
    """A file or folder cannot be read or written."""


class MissingFileError(FileError, FileNotFoundError):
    """A file or folder does not exist."""


class NonfiniteError(UserError, FloatingPointError):
    """A loss or gradient is infinite or NaN."""
