"""Exclusive use of a folder: by a lock, or by a lease in a store and on disks without locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from simcis_jax.errors import FileError, MissingFileError, reading, writing
from simcis_jax.runtime.object_store import Store

NAME = 'lease.json'
# Errors of file systems without locks. On NFS, which has them, only files open for writing can be
# locked, so that locking a folder is EBADF.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF)


@contextlib.contextmanager
def locked(file: int | IO, folder: Path) -> Iterator[bool]:
    """Locks an open file of a folder, or the folder; where nothing can be locked, takes a lease.

    The kernel releases the lock when the process ends, however it ends.

    Yields:
        Whether it is a lock.

    Raises:
        BlockingIOError: another process has locked the file.
        FileError: another process has the lease.
    """
    has_locks = True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        has_locks = False
    held = (
        contextlib.nullcontext() if has_locks else Lease(FilesOnDisk(folder), on_loss=end_at_once)
    )
    with held:
        yield has_locks


class FilesOnDisk:
    """The files of a folder on a disk, with the methods of `Store` that a lease calls.

    Raises:
        FileError: from its methods; a file cannot be read, written or deleted.
    """

    def __init__(self, folder: Path):
        self.url, self._folder = str(folder), folder

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none."""
        try:
            with reading(self._folder / name):
                return (self._folder / name).read_bytes()
        except MissingFileError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Writes a file."""
        with writing(self._folder / name):
            (self._folder / name).write_bytes(content)

    def remove(self, name: str) -> None:
        """Deletes a file, if it exists."""
        with writing(self._folder / name):
            (self._folder / name).unlink(missing_ok=True)


def stop_run() -> None:
    """Stops this process as SIGTERM does, for a run that works in a copy of the folder."""
    os.kill(os.getpid(), signal.SIGTERM)


def end_at_once() -> None:
    """Ends this process; a last checkpoint would land in the folder of another one."""
    os._exit(1)


class Lease:
    """Context manager that keeps a file in a folder and renews it while the folder is used.

    A process that finds the file waits to see whether it is renewed. If two processes write it at
    the same time, both read it again, and the later writer keeps the folder. A process that could
    not renew it in time, for example without network, notices afterwards that another has taken
    over.

    Args:
        store: the folder.
        seconds: time after which a lease that is not renewed expires.
        settling: seconds between writing the file and reading it again.
        on_loss: called in a thread when another process has taken the folder.

    Raises:
        FileError: another process uses the folder.
    """

    def __init__(
        self,
        store: Store | FilesOnDisk,
        *,
        seconds: float = 60,
        settling: float = 2,
        on_loss: Callable[[], None] = lambda: None,
    ):
        self._store, self._seconds, self._settling = store, seconds, settling
        self._holder = f'process {os.getpid()} on {socket.gethostname()}'
        self._token, self._renewals, self._on_loss = uuid.uuid4().hex, 0, on_loss
        self._ended, self._taken_by = threading.Event(), None
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Lease:
        found = self._store.read(NAME)
        if found is not None:
            print(
                f'{self._store.url} is in use by {_holder(found)}, unless that was killed; '
                f'checking again in {self._seconds:.0f} seconds',
                flush=True,
            )
            time.sleep(self._seconds)
            self._refuse_if(self._store.read(NAME) not in (found, None))
        self._write()
        time.sleep(self._settling)
        self._refuse_if(not self._is_ours())
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()
        if self._taken_by is None and self._is_ours():
            self._store.remove(NAME)

    def check(self) -> None:
        """Raises FileError if another process has taken the folder."""
        if self._taken_by is None and not self._is_ours():
            self._taken_by = _holder(self._store.read(NAME))
        if self._taken_by is not None:
            raise FileError(self._loss())

    def _loss(self) -> str:
        return (
            f'{self._store.url} was taken over by {self._taken_by}, because this process could not '
            f'renew its lease for {self._seconds:.0f} seconds; let that one finish.'
        )

    def _keep(self) -> None:
        while not self._ended.wait(self._seconds / 6):
            try:
                if not self._is_ours():
                    self._taken_by = _holder(self._store.read(NAME))
                    print(f'error: {self._loss()}', file=sys.stderr, flush=True)
                    self._on_loss()
                    return
                self._write()
            except FileError as error:
                print(f'warning: {error}', flush=True)

    def _write(self) -> None:
        self._renewals += 1
        content = {'holder': self._holder, 'token': self._token, 'renewals': self._renewals}
        self._store.write(NAME, json.dumps(content).encode())

    def _is_ours(self) -> bool:
        return _field(self._store.read(NAME), 'token') == self._token

    def _refuse_if(self, is_used: bool) -> None:
        if is_used:
            raise FileError(
                f'{self._store.url} is used by another process '
                f'({_holder(self._store.read(NAME))}); wait for it, stop it, or choose another '
                'folder.'
            )


def _holder(content: bytes | None) -> str:
    return _field(content, 'holder') or 'another process'


def _field(content: bytes | None, name: str) -> str | None:
    try:
        return json.loads(content or b'{}').get(name)
    except (ValueError, AttributeError):
        return None
