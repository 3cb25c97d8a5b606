"""Writes files atomically: completely or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from simcis_jax.errors import writing

PART = '.part'  # How the name of a file ends that is not complete yet.


@contextlib.contextmanager
def replacing(path: str | Path, name: str = '') -> Iterator[Path]:
    """Gives another path to write to; it takes the place of `path` unless something fails.

    Args:
        path: the file.
        name: part of the name of the other path, if several processes may write the file at once.

    Raises:
        FileError: it cannot be written, such as when the disk is full; an old file is still there.
    """
    path = Path(path)
    part = path.with_name(f'{path.name}{name}{PART}')
    with writing(path):
        try:
            yield part
            os.replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that a reader finds either the old or the new one, never a part.

    The encoding is UTF-8; bytes of file names that are not valid text are written unchanged.

    Raises:
        FileError: it cannot be written; the old one is still there.
    """
    with (
        replacing(path, f'.{os.getpid()}') as part,
        part.open('w', encoding='utf-8', errors='surrogateescape') as file,
    ):
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
