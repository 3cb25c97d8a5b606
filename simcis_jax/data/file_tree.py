"""Reads the folders of a downloaded data set, unpacked or inside .zip and .tar archives."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable

from simcis_jax.data import decode
from simcis_jax.errors import InputError, MissingFileError


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of one folder; several threads may read them at the same time."""

    where: str  # Path of the folder, or of the archive and the folder in it, for messages.
    names: list[str]  # Sorted.
    read: Callable[[str], bytes]  # File name -> content; raises UserError if it is damaged.


class FileTree:
    """Finds folders inside a source folder, its subfolders, and the archives in the source folder.

    Archives are read in place; nothing is unpacked.

    Args:
        source: a folder, or a single archive.

    Raises:
        MissingFileError: there is no such folder or file.
        InputError: an archive is damaged.
    """

    def __init__(self, source: str | os.PathLike):
        self._source = pathlib.Path(source)
        if self._source.is_dir():
            entries = sorted(self._source.iterdir())
        elif self._source.is_file():
            entries = [self._source]
        else:
            raise MissingFileError(f'{source} does not exist; give the folder of the download.')
        self._roots = [self._source, *(entry for entry in entries if entry.is_dir())]
        self._archives = [
            entry for entry in entries if entry.is_file() and entry.suffix.lower() in _READERS
        ]

    def find(self, folder: str) -> Files:
        """Finds a folder by its relative path, such as 'images/training', and lists its files.

        Raises:
            MissingFileError: no such folder is found, or it is empty.
            InputError: an archive is damaged.
        """
        for place in (*self._roots, *self._archives):
            files = _in_folder(place, folder) if place.is_dir() else _in_archive(place, folder)
            if files is not None:
                return files
        raise MissingFileError(
            f'{self._source} holds no {folder} with files, neither unpacked nor in a .zip or .tar; '
            'put the downloaded archives there (unpack compressed tar archives first).'
        )


def _in_folder(root: pathlib.Path, folder: str) -> Files | None:
    path = root / folder
    if not path.is_dir():
        return None
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith('.'))
    return Files(f'{path}', names, lambda name: decode.read_bytes(path / name)) if names else None


def _in_archive(archive: pathlib.Path, folder: str) -> Files | None:
    """Like `_in_folder`, for an archive with the folder at the top or one level below."""
    members, read = _READERS[archive.suffix.lower()](archive)
    wanted = tuple(folder.split('/'))
    inside = {}
    for member in members:
        *parents, name = pathlib.PurePosixPath(member).parts
        if tuple(parents) == wanted or tuple(parents[1:]) == wanted:
            if parents[0] != '__MACOSX' and not name.startswith('.'):
                inside[name] = member
    if not inside:
        return None
    return Files(f'{archive}/{folder}', sorted(inside), lambda name: read(inside[name]))


def _zip(path: pathlib.Path) -> tuple[list[str], Callable[[str], bytes]]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise InputError(f'{path} is damaged ({error}); download it again.') from None

    def read(name):
        try:
            return archive.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise InputError(f'{path}: {name} is damaged ({error}); download it again.') from None

    return [entry.filename for entry in archive.infolist() if not entry.is_dir()], read


def _tar(path: pathlib.Path) -> tuple[list[str], Callable[[str], bytes]]:
    try:
        with tarfile.open(path, 'r:') as archive:
            members = {
                f'{pathlib.PurePosixPath(member.name)}': (member.size, member.offset_data)
                for member in archive
                if member.isfile()
            }
    except tarfile.TarError as error:
        raise InputError(f'{path} is damaged or compressed ({error}); unpack it first.') from None
    file = path.open('rb')

    def read(name):
        size, offset = members[name]
        content = os.pread(file.fileno(), size, offset)
        if len(content) < size:
            raise InputError(f'{path}: {name} is truncated; download the archive again.')
        return content

    return list(members), read


_READERS = {'.zip': _zip, '.tar': _tar}
