"""An object store in memory that can do no more than object stores can."""

from __future__ import annotations

import io
import itertools

import fsspec
import pytest


class FakeStore(fsspec.AbstractFileSystem):
    """Reads, writes, lists and deletes whole files; anything else is an error.

    `failing` is called with every name that is about to be written, and may raise an exception.
    """

    protocol = ('gs', 's3')
    files: dict[str, tuple[bytes, int]] = {}  # Content and version by name.
    versions = itertools.count()
    downloads: list[str] = []

    @staticmethod
    def failing(name: str) -> None:
        pass

    def find(self, path, maxdepth=None, withdirs=False, detail=False, **_):
        path = self._strip_protocol(path)
        found = {n: self.info(n) for n in self.files if n.startswith(f'{path}/')}
        if not found:
            raise FileNotFoundError(path)
        return found if detail else list(found)

    def info(self, path, **_):
        path = self._strip_protocol(path)
        if path not in self.files:
            raise FileNotFoundError(path)
        content, version = self.files[path]
        return {'name': path, 'size': len(content), 'type': 'file', 'etag': f'"{version}"'}

    def ls(self, path, detail=True, **_):
        return [self.info(path)] if detail else [path]

    def mkdir(self, *_, **__):
        pass  # A store has no folders.

    makedirs = mkdir

    def _open(self, path, mode='rb', **_):
        if mode == 'rb':
            self.downloads.append(path)
            return io.BytesIO(self.cat_whole(path))
        if mode != 'wb':
            raise NotImplementedError(f'a store cannot open files with mode {mode}')
        return _Upload(self, path)

    def cat_whole(self, path):
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path][0]

    def _rm(self, path):
        path = self._strip_protocol(path)
        if path not in self.files:
            raise FileNotFoundError(path)
        del self.files[path]

    def mv(self, *_, **__):
        raise NotImplementedError('a store cannot rename')

    rename = move = mv

    def transaction(self):
        raise NotImplementedError('a store has no locks')


class _Upload(io.BytesIO):
    def __init__(self, store, path):
        super().__init__()
        self._store, self._path = store, path

    def close(self):
        if not self.closed:
            self._store.failing(self._path)
            self._store.files[self._path] = self.getvalue(), next(self._store.versions)
        super().close()


@pytest.fixture
def fake_store(tmp_path, monkeypatch):
    """The class of an empty store at gs:// and s3://; copies are below `tmp_path`/cache."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(FakeStore, 'files', {})
    monkeypatch.setattr(FakeStore, 'downloads', [])
    for kind in FakeStore.protocol:
        fsspec.register_implementation(kind, FakeStore, clobber=True)
    return FakeStore
