"""Exclusive use of a folder in a store without locks."""

import errno
import itertools
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_store import fake_store  # noqa: F401

from simcis_jax.errors import FileError
from simcis_jax.runtime import lease
from simcis_jax.runtime.object_store import Store

QUICK = {'seconds': 1.2, 'settling': 0.05}


@pytest.fixture
def store(fake_store):  # noqa: F811
    return Store('gs://bucket/run')


def test_a_lease_that_is_renewed_refuses_others_and_ends_with_its_block(store):
    with lease.Lease(store, **QUICK) as held:
        held.check()
        with pytest.raises(FileError, match='gs://bucket/run is used by another .*process .* on'):
            lease.Lease(store, **QUICK).__enter__()
        held.check()
    assert store.read(lease.NAME) is None


def test_a_lease_of_a_killed_process_is_taken_over(store, capsys):
    killed = {'holder': 'process 7 on host', 'token': 'x', 'renewals': 3}
    store.write(lease.NAME, json.dumps(killed).encode())
    with lease.Lease(store, **QUICK) as held:
        held.check()
    assert 'is in use by process 7 on host, unless' in capsys.readouterr().out


def test_of_several_that_take_it_at_once_one_has_it(store, monkeypatch):
    """All of them find no lease, and all have written theirs when the first reads it again."""
    outcomes, released = [], threading.Event()

    def together(function):
        number, barrier = itertools.count(), threading.Barrier(4)

        def call(*arguments):
            result = function(*arguments)
            if next(number) < 4:
                barrier.wait(10)
            return result

        return call

    def report(outcome):
        outcomes.append(outcome)
        if len(outcomes) == 4:
            released.set()

    def take():
        try:
            with lease.Lease(store, seconds=60, settling=0):
                report('has it')
                released.wait(10)
        except FileError:
            report('refused')

    monkeypatch.setattr(store, 'read', together(store.read))
    monkeypatch.setattr(store, 'write', together(store.write))
    threads = [threading.Thread(target=take) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(outcomes) == ['has it'] + ['refused'] * 3


def test_a_process_notices_that_another_has_taken_its_folder(store):
    lost = threading.Event()
    with lease.Lease(store, **QUICK, on_loss=lost.set) as held:
        other = {'holder': 'process 9 on other', 'token': 'y', 'renewals': 1}
        store.write(lease.NAME, json.dumps(other).encode())
        assert lost.wait(5)
        with pytest.raises(FileError, match='was taken over by process 9 on other'):
            held.check()
    assert json.loads(store.read(lease.NAME)) == other  # The lease of the other stays.


LOSER = """
import pathlib, sys, time
from simcis_jax.runtime import lease

folder = pathlib.Path(sys.argv[1])
files = lease.FilesOnDisk(folder)
with lease.Lease(files, seconds=0.6, settling=0, on_loss=lease.end_at_once):
    files.write(lease.NAME, b'{"holder": "process 9 on other", "token": "y", "renewals": 1}')
    time.sleep(60)
    (folder / 'checkpoint').touch()
"""


def test_a_run_on_a_disk_ends_at_once_when_another_has_taken_its_folder(tmp_path):
    arguments = [sys.executable, '-c', LOSER, str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and 'was taken over by process 9 on other' in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [lease.NAME]


@pytest.mark.parametrize('method', ['read_bytes', 'write_bytes'])
def test_a_folder_on_a_disk_that_fails_for_a_moment_keeps_its_lease(
    method, tmp_path, monkeypatch, capsys
):
    """Mounted stores have such errors, which must not end the thread that renews the lease."""
    failed, original = threading.Event(), getattr(Path, method)

    def fail_once(path, *arguments):
        if threading.current_thread() is not threading.main_thread() and not failed.is_set():
            failed.set()
            raise OSError(errno.ESTALE, 'Stale file handle')
        return original(path, *arguments)

    lost = threading.Event()
    with lease.Lease(lease.FilesOnDisk(tmp_path), **QUICK, on_loss=lost.set) as held:
        monkeypatch.setattr(Path, method, fail_once)
        assert failed.wait(5)
        renewed = json.loads((tmp_path / lease.NAME).read_text('utf-8'))['renewals']
        time.sleep(2 * QUICK['seconds'] / 6)
        assert json.loads((tmp_path / lease.NAME).read_text('utf-8'))['renewals'] > renewed
        held.check()
    assert not lost.is_set()
    assert 'warning: ' in (output := capsys.readouterr().out) and 'Stale file handle' in output
    assert not (tmp_path / lease.NAME).exists()
