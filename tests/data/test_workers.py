"""Tests that worker processes and their shared memory go away when the main process ends.

Killing all processes at once with SIGKILL is not tested: shared memory cannot be removed then.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
SHARED_MEMORY = pathlib.Path('/dev/shm')
PROGRAM = """
import multiprocessing
from simcis_jax.data import pipeline, shapes

if __name__ == '__main__':
    source = shapes.Shapes('train', size=64)
    batches = pipeline.train_iterator(
        source, images=dict.fromkeys(range(64), frozenset(range(8))), batch_size=8, seed=0,
        num_workers=2, size=64, max_segments=8,
    )
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    for batch in batches:
        pass
"""


def is_running(process_id):
    try:
        return '\nState:\tZ' not in pathlib.Path(f'/proc/{process_id}/status').read_text()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ('number', 'send'),
    [
        (signal.SIGINT, os.kill),
        (signal.SIGTERM, os.kill),
        (signal.SIGKILL, os.kill),
        (signal.SIGINT, os.killpg),
        (signal.SIGTERM, os.killpg),
    ],
)
def test_workers_and_shared_memory_end_with_the_main_process(tmp_path, number, send):
    (tmp_path / 'program.py').write_text(PROGRAM)
    before = set(SHARED_MEMORY.iterdir())
    program = subprocess.Popen(
        [sys.executable, tmp_path / 'program.py'],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
    )
    workers = [int(word) for word in program.stdout.readline().split()]
    assert len(workers) == 2 and all(map(is_running, workers))
    send(program.pid, number)
    program.wait(30)
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)) or left_since(before):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def left_since(before):
    """New shared memory that no process has open, so that of other programs does not count."""
    return {path for path in set(SHARED_MEMORY.iterdir()) - before if not is_mapped(path)}


def is_mapped(path):
    """Whether a running process has a file of shared memory open."""
    for maps in pathlib.Path('/proc').glob('[0-9]*/maps'):
        try:
            if str(path) in maps.read_text():
                return True
        except OSError:
            continue
    return False
