"""Folders of object stores, such as gs:// and s3://, and their copies on the local disk.

A store reads, writes, lists and deletes whole files. It cannot rename a folder, append to a file or
lock one, so programs work in the copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from simcis_jax.errors import FileError, InputError, UserError, writing
from simcis_jax.runtime.cache import cache_folder
from simcis_jax.runtime.files import replacing, write_atomically
from simcis_jax.runtime.progress import Progress
from simcis_jax.runtime.threads import map_ahead

PACKAGES = {'gs': 'gcsfs', 's3': 's3fs'}  # What fsspec needs for each kind of store.
_READ_WHOLE = 1 << 26  # Bytes up to which a file is read at once, because it may be growing.


def is_url(path: str | os.PathLike) -> bool:
    """Whether a path is an address such as gs://bucket/folder."""
    return '://' in str(path)


def check_local(path: str, name: str, way_out: str = 'copy it to a disk and give that path') -> str:
    """Returns a path on the local disk.

    Args:
        path: the path.
        name: name of the argument or config key in the error message.
        way_out: ends the error message.

    Raises:
        InputError: the path is an address.
    """
    if is_url(path):
        raise InputError(f'{name}={path} must be a path on a disk; {way_out}.')
    return path


class Store:
    """The files below an address.

    Raises:
        InputError: the kind of store is unknown, or its package is not installed.
        FileError: from its methods; the store cannot be reached, or refuses.
    """

    def __init__(self, url: str):
        import fsspec

        self.url, kind = url.rstrip('/'), url.partition('://')[0]
        if kind not in PACKAGES:
            known = ' and '.join(f'{name}://' for name in PACKAGES)
            raise InputError(f'{url} is in an unknown kind of store; {known} can be used.')
        try:
            with self._explained('opened'):
                self._files, self._root = fsspec.url_to_fs(self.url)
        except ImportError:
            raise InputError(
                f'{url} needs a package that is not installed: pip install {PACKAGES[kind]}'
            ) from None

    def list(self) -> dict[str, Any]:
        """The names of all files, with values that change when their content changes."""
        with self._explained('listed'):
            self._files.invalidate_cache()
            try:
                found = self._files.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
        start = len(self._root) + 1
        versions = {
            name[start:]: _version(info)
            for name, info in found.items()
            if name[start:] and not name.endswith('/')  # Some tools write empty files as folders.
        }
        for name in versions:  # As a path, it could lead out of the folder of the copy.
            if not {'', '.', '..'}.isdisjoint(name.split('/')):
                raise FileError(
                    f'{self.url} has a file named {name!r}, which is no path on a disk: "//", "." '
                    'and ".." are not allowed as parts of it; rename it in the store.'
                )
        return versions

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none."""
        with self._explained('read', name):
            self._files.invalidate_cache()
            try:
                return self._files.cat_file(f'{self._root}/{name}')
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Writes a file whole."""
        with self._explained('written', name):
            self._files.pipe_file(f'{self._root}/{name}', content)

    def remove(self, name: str) -> None:
        """Deletes a file, if it exists."""
        with self._explained('deleted', name), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(f'{self._root}/{name}')

    def download(self, name: str, path: Path) -> None:
        """Copies a file to the local disk, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._explained('read', name), replacing(path) as part:
            self._files.get_file(f'{self._root}/{name}', str(part))

    def upload(self, path: Path, name: str) -> None:
        """Copies a file from the local disk."""
        if path.stat().st_size <= _READ_WHOLE:
            self.write(name, path.read_bytes())
            return
        try:
            with self._explained('written', name):
                self._files.put_file(str(path), f'{self._root}/{name}')
        except FileError:
            path.stat()  # Raises FileNotFoundError if the file was deleted meanwhile, as above.
            raise

    @contextlib.contextmanager
    def _explained(self, done: str, name: str = '') -> Iterator[None]:
        try:
            yield
        except (UserError, ImportError):
            raise
        except Exception as error:  # Each store has its own types of exceptions.
            path = f'{self.url}/{name}' if name else self.url
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
            raise FileError(
                f'{path} cannot be {done} ({reason}); check the address, your permission and the '
                'network.'
            ) from error


class FolderCopy:
    """A folder of a store and its copy on the local disk.

    Beside the copy lies a list of the files that are known to be equal in both, so that only others
    are transferred.

    Args:
        url: address of the folder.
        is_copied: whether a file, by its name relative to the folder, is copied at all.
    """

    def __init__(self, url: str, is_copied: Callable[[str], bool] = lambda name: True):
        self.store, self._is_copied = Store(url), is_copied
        name = self.store.url.replace('+', '%2B').replace('://', '+').replace('/', '+')
        self.path = cache_folder('stores') / name
        self._list = self.path.with_name(f'{name}.json')
        self._equal = {}  # Name -> version in the store, size and time of the copy.

    def fetch(self) -> None:
        """Makes the copy equal to the folder in the store."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            equal, stored = self._read_list(), self._stored()
            for name in self._local().keys() - stored.keys():
                (self.path / name).unlink()
            self._write_list({})  # What is replaced next is no longer equal.
            differing = [n for n in stored if equal.get(n) != [stored[n], *self._state(n)]]
            progress = Progress(
                f'copy of {self.store.url}', len(differing), 'files', only_if_slow=True
            )
            for _ in map_ahead(
                lambda name: self.store.download(name, self.path / name), differing, num_threads=8
            ):
                progress.advance()
            self._write_list({name: [stored[name], *self._state(name)] for name in stored})
            for folder, _, _ in os.walk(self.path, topdown=False):
                if Path(folder) != self.path and not os.listdir(folder):
                    os.rmdir(folder)

    def push(self, order: Callable[[str], Any] = lambda name: 0) -> None:
        """Makes the folder in the store equal to the copy; what was deleted goes last.

        Args:
            order: sorts the names of files to upload; those that compare equal go oldest first.
        """
        before = self._local()
        changed = [n for n, state in before.items() if self._equal.get(n, [])[1:] != state]
        for name in sorted(changed, key=lambda name: (order(name), before[name][1])):
            with contextlib.suppress(FileNotFoundError):  # Deleted since.
                self.store.upload(self.path / name, name)
                self._equal[name] = [None, *before[name]]
        removed = self._equal.keys() - before.keys()
        for name in removed:
            self.store.remove(name)
            del self._equal[name]
        if changed or removed:
            stored = self._stored()
            self._write_list(
                {name: [stored.get(name), *state] for name, (_, *state) in self._equal.items()}
            )

    def _stored(self) -> dict[str, Any]:
        return {n: version for n, version in self.store.list().items() if self._is_copied(n)}

    def _local(self) -> dict[str, list[int]]:
        """Sizes and times of the files in the copy, by name."""
        paths = [Path(folder, name) for folder, _, names in os.walk(self.path) for name in names]
        names = [path.relative_to(self.path).as_posix() for path in paths]
        states = {name: self._state(name) for name in names if self._is_copied(name)}
        return {name: state for name, state in states.items() if state}

    def _state(self, name: str) -> list[int]:
        try:
            found = (self.path / name).stat()
        except FileNotFoundError:
            return []
        return [found.st_size, found.st_mtime_ns]

    def _read_list(self) -> dict[str, list]:
        try:
            return json.loads(self._list.read_text('utf-8'))
        except (OSError, ValueError):
            return {}

    def _write_list(self, equal: dict[str, list]) -> None:
        self._equal = equal
        write_atomically(self._list, json.dumps(equal))


def downloaded(path: str) -> str:
    """The path itself; of an address, that of its copy, which is made or brought up to date."""
    if not is_url(path):
        return path
    copy = FolderCopy(path)
    copy.path.mkdir(parents=True, exist_ok=True)
    with copy.path.with_name(f'{copy.path.name}.lock').open('w', encoding='utf-8') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Several processes of a host share the copy.
        copy.fetch()
    return str(copy.path)


def _version(info: dict[str, Any]) -> str | None:
    """What a store says about a file that changes with its content."""
    names = ('etag', 'ETag', 'created', 'mtime')
    found = next((info[name] for name in names if info.get(name)), None)
    return None if found is None else f'{info.get("size")} {found}'
