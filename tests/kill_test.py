"""Kills runs at random moments, lets the same command finish them, and compares every bit.

    python -m tests.kill_test --kills=20

Every run is killed once, at a random moment of a random kind (SIGKILL, one in five SIGTERM), then
continued to its end. JAX_COMPILATION_CACHE_DIR keeps what is compiled.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import commands  # noqa: E402
import runs  # noqa: E402


def finish(workdir):
    done = commands.start_run(workdir, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = done.communicate()
    assert done.returncode == 0, output


# Moments to kill at, each a condition on the folder of the run.


def writing(stage):
    """A checkpoint of the stage is being written."""
    return lambda run: any(run.glob(f'stage_{stage}/checkpoints/*orbax-checkpoint-tmp*'))


def trained(stage, last):
    """The stage is trained but not evaluated."""
    return lambda run: (run / f'stage_{stage}' / 'checkpoints' / last).exists()


def evaluated(stage):
    """The stage is finished: the next one begins, with its survey."""
    return lambda run: (run / f'stage_{stage}' / 'evaluation.json').exists()


def moments(duration):
    """Kinds of moments by name: a condition, and how long after it the kill comes at most."""
    stages = {1: '6', 2: '4', 3: '4'}
    kinds = {'any time': (lambda run: True, duration)}
    for stage, last in stages.items():
        kinds[f'writing a checkpoint of stage {stage}'] = (writing(stage), 0.15)
        kinds[f'evaluation of stage {stage}'] = (trained(stage, last), 1.0)
        kinds[f'after stage {stage}'] = (evaluated(stage), 3.0)
    return kinds


def kill_once(workdir, name, condition, delay, number):
    """Starts a run and kills it; returns what it left behind, in words."""
    process = commands.start_run(workdir, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and not condition(workdir):
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(number)
    _, errors = process.communicate()
    if number == signal.SIGTERM and process.returncode not in (0, -number):
        assert process.returncode == 128 + number, errors
        assert re.search('SIGTERM: stopped .*; the same command goes on', errors), errors
    left = sorted(
        f'{path.parent.parent.name}/{path.name}' for path in workdir.glob('stage_*/checkpoints/*')
    )
    return f'{name} + {delay:.2f} s, {number.name}, status {process.returncode}: {", ".join(left)}'


def kill_test(kills, seed, folder):
    """Raises AssertionError if any run ends with other numbers than the undisturbed one."""
    rng = random.Random(seed)
    undisturbed = folder / 'undisturbed'
    finish(undisturbed)  # Compiles.
    shutil.rmtree(undisturbed)
    begin = time.monotonic()
    finish(undisturbed)
    kinds = moments(time.monotonic() - begin)
    names = list(kinds)
    for index in range(kills):
        # Every kind comes up before one does again; one in three is any time.
        turn = index - index // 3 - 1
        name = names[0] if index % 3 == 0 else names[1 + turn % (len(names) - 1)]
        condition, longest = kinds[name]
        number = signal.SIGTERM if index % 5 == 4 else signal.SIGKILL
        workdir = folder / f'killed_{index}'
        left = kill_once(workdir, name, condition, rng.uniform(0, longest), number)
        finish(workdir)
        runs.assert_same(workdir, undisturbed)
        print(f'{index + 1}/{kills} equal: {left}', flush=True)
        shutil.rmtree(workdir)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', f'{temporary}/compiled')
        kill_test(arguments.kills, arguments.seed, Path(temporary))
