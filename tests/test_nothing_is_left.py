"""What is left of a run that was interrupted: no thread, process, open file or unfinished file."""

import collections
import contextlib
import gc
import os
import re
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest
import runs
from fake_store import fake_store  # noqa: F401
from tiny import tiny_config

from simcis_jax import main
from simcis_jax.evaluation.tasks import SemanticTask
from simcis_jax.runtime import interruption, lease
from simcis_jax.training import remote_workdir

CHANGES = {
    'protocol.base': 12,
    'training.base_steps': 4,
    'training.checkpoint_every': 1,
    'training.keep_best': 'miou',
    'evaluation.tasks': ('semantic',),
    'evaluation.every': 2,
    'evaluation.num_images': 4,
    'data.num_workers': 1,
}


BATCHES = 'shared memory of batches from workers'


class Killed(Exception):
    pass


def raise_exception(*_):
    raise Killed


def terminate(batch=None):
    os.kill(os.getpid(), signal.SIGTERM)
    return batch


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    """Signal handlers as in the command, a quick store, an empty folder for temporary files."""
    before = {number: signal.getsignal(number) for number in interruption.SIGNALS}
    interruption.stop_at_once()
    defaults = {'seconds': 0.5, 'settling': 0.0, 'on_loss': lambda: None}
    monkeypatch.setattr(lease.Lease.__init__, '__kwdefaults__', defaults)
    monkeypatch.setattr(remote_workdir, 'EVERY', 0.05)
    (tmp_path / 'temporary').mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupted_run(workdir, end, in_evaluation):
    """Runs until `end` interrupts a step or an evaluation; returns the exception."""
    count = SemanticTask.count

    def interrupted_count(self, *arguments):
        end()
        return count(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        if in_evaluation:
            patch.setattr(SemanticTask, 'count', interrupted_count)
        else:
            runs.at_step(patch, 2, end)
        with pytest.raises((Killed, interruption.Interrupted)) as raised:
            main.run(tiny_config(**CHANGES), workdir)
    return raised  # Its traceback keeps the frames of the run alive.


def in_use():
    """Counts the threads, child processes and open files of this process, by kind."""
    found = collections.Counter(
        re.sub(r'\d+', '', f'thread {t.name}') for t in threading.enumerate()
    )
    for task in Path('/proc/self/task').iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # It has just ended.
            found['child process'] += len((task / 'children').read_text().split())
    for descriptor in os.listdir('/proc/self/fd'):
        with contextlib.suppress(FileNotFoundError):  # The one by which the folder was listed.
            path = os.readlink(f'/proc/self/fd/{descriptor}')
            found[BATCHES if '/psm_' in path else re.sub(r'\d+', '', path)] += 1
    return found


@pytest.mark.slow
def test_nothing_is_left_of_an_interrupted_run(fake_store, tmp_path):  # noqa: F811
    ends = [(end, where) for end in (raise_exception, terminate) for where in (False, True)]
    kept = [interrupted_run('gs://bucket/first', *ends[0])]  # Starts what lasts: JAX, workers.
    before = in_use()
    for number, end in enumerate(ends):
        kept.append(interrupted_run(f'gs://bucket/{number}', *end))
        deadline = time.monotonic() + 5
        # The batches that a traceback holds stay.
        while (more := {*(in_use() - before)} - {BATCHES}) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not more, end
        assert lease.NAME not in {name.split('/')[-1] for name in fake_store.files}
        unfinished = [*tmp_path.rglob('*.part'), *tmp_path.rglob('*-tmp*')]
        assert not unfinished and not list((tmp_path / 'temporary').iterdir()), end
    kept.clear()
    gc.collect()
    assert not in_use()[BATCHES]
