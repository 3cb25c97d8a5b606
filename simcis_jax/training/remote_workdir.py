"""Work directories in object stores: a run works in a local copy, whose changes are uploaded."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import jax

from simcis_jax.errors import FileError, InputError
from simcis_jax.runtime import lease
from simcis_jax.runtime.files import PART
from simcis_jax.runtime.object_store import FolderCopy, is_url

EVERY = 30.0  # Seconds between uploads.


@contextlib.contextmanager
def local_folder(workdir: str | Path) -> Iterator[Path]:
    """The folder in which a run works: `workdir`, or the copy of one in an object store.

    The copy is brought up to date at the start. What changes is uploaded every 30 seconds and at
    the end, in an order in which a run can be resumed from what is in the store at any moment.

    Raises:
        InputError: the run has several processes, which do not share the local copy; or the kind of
            store is unknown.
        FileError: another process uses the work directory, or the store cannot be read or written.
    """
    if not is_url(workdir):
        yield Path(workdir)
        return
    if jax.process_count() > 1:
        raise InputError(
            f'--workdir={workdir} is in an object store, where a run of several processes cannot '
            'work; give a folder that all of them see, such as the bucket mounted with gcsfuse.'
        )
    copy = FolderCopy(str(workdir), is_copied)
    with lease.Lease(copy.store, on_loss=lease.stop_run) as held:
        copy.fetch()
        print(f'{workdir}: working in a copy, {copy.path}', flush=True)
        ended = threading.Event()
        thread = threading.Thread(target=_upload, args=(copy, held, ended), daemon=True)
        thread.start()
        try:
            yield copy.path
        finally:
            ended.set()
            thread.join()
            held.check()
            try:
                copy.push(upload_order)
            except FileError as error:
                raise FileError(
                    f'{error} The last changes of the run are in {copy.path} only: copy this '
                    'folder there, or repeat the command, which repeats the steps that are missing.'
                ) from error


def is_copied(name: str) -> bool:
    """Whether a file of a work directory is uploaded: not what is still being written."""
    *folders, file = name.split('/')
    return (
        file not in ('lock', lease.NAME)
        and not file.endswith(PART)
        and not any('.tmp' in folder or '-tmp' in folder for folder in folders)
    )


def upload_order(name: str) -> int:
    """Sorts files so that each is uploaded after the files on which it relies.

    The log names the best weights, a checkpoint the step up to which the log is complete, and the
    scores of a stage mean that its checkpoint exists. The manifest of a checkpoint, which makes it
    valid, is its newest file.
    """
    if '/best/' in name:
        return 0
    if '/checkpoints/' in name:
        return 2
    return 3 if name.endswith(('evaluation.json', 'results.json', 'results.txt')) else 1


def _upload(copy: FolderCopy, held: lease.Lease, ended: threading.Event) -> None:
    while not ended.wait(EVERY):
        try:
            held.check()
            copy.push(upload_order)
        except FileError as error:  # A network may come back; the end of the run is strict.
            print(f'warning: {error}', flush=True)
