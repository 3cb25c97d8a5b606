"""Kills runs repeatedly at random moments and checks that their results are the same bit for bit.

    python -m tests.kill_test --runs=2

A run of three stages is killed ten times: just after its start, and in every stage while it writes
a checkpoint, while it evaluates, and at the start of the next stage. One in four kills is SIGTERM,
the others are SIGKILL. The same command resumes the run each time. Set JAX_COMPILATION_CACHE_DIR to
keep compiled programs.

    python -m tests.kill_test --runs=1 --kills=20 --config=shapes_cps_8_2 \\
        --config.evaluation.every=50 --config.training.keep_best=pq

kills a run of any config 20 times, at random moments spread over the whole run; every second kill
comes inside an evaluation. All other flags are those of the training command.
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


def is_new(path, since):
    try:
        return path.stat().st_mtime > since
    except FileNotFoundError:  # Renamed meanwhile.
        return False


def moments():
    """Moments of a run in order: name, condition(workdir, start time), largest delay in seconds.

    A condition also holds after its moment. It takes the start time of the command to ignore the
    unfinished checkpoints of earlier kills.
    """
    yield 'just started', lambda run, start: True, 10.0
    for stage, last in ((1, '6'), (2, '4'), (3, '4')):
        folder = f'stage_{stage}'

        def writes(run, start, folder=folder):
            unfinished = (run / folder).glob('checkpoints/*orbax-checkpoint-tmp*')
            is_past = (run / folder / 'evaluation.json').exists()
            return is_past or any(is_new(path, start) for path in unfinished)

        def trained(run, start, path=f'{folder}/checkpoints/{last}'):
            return (run / path).exists()

        def evaluated(run, start, path=f'{folder}/evaluation.json'):
            return (run / path).exists()

        yield f'stage {stage} writes a checkpoint', writes, 0.2
        yield f'stage {stage} is being evaluated', trained, 4.0
        yield f'stage {stage} is over', evaluated, 4.0 if stage < 3 else 0.02


def random_moments(rng, kills, num_records):
    """As many moments as `kills`, spread over a run that logs `num_records` records."""
    for kill, last in enumerate(sorted(rng.randrange(num_records) for _ in range(kills))):
        inside = kill % 2 == 1

        def reached(run, start, last=last, inside=inside):
            log, counts = run / 'metrics.jsonl', run.glob('stage_*/counts/*/*')
            is_past = log.exists() and log.read_bytes().count(b'\n') > last
            return is_past and (not inside or any(is_new(path, start) for path in counts))

        place = 'in an evaluation' if inside else 'anywhere'
        yield f'after record {last}, {place}', reached, 1.0


def start_run(workdir, flags, **options):
    """Starts a run; one with flags of its own is long, and compiled as it is for users."""
    environment = {'XLA_FLAGS': ''} if flags else None
    return commands.start_run(workdir, *flags, environment=environment, **options)


def kill_once(workdir, condition, delay, number, flags=()):
    """Starts the run and kills it `delay` seconds after the condition; returns the exit status."""
    start = time.time()
    process = start_run(workdir, flags, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and not condition(workdir, start):
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(number)
    _, errors = process.communicate()
    if number == signal.SIGTERM and process.returncode == 128 + number:
        assert re.search('SIGTERM: stopped .*; run the same command again', errors), errors
    else:
        assert process.returncode in (0, -number), errors
    return process.returncode


def finish(workdir, flags=()):
    process = start_run(workdir, flags, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = process.communicate()
    assert process.returncode == 0, output


def left(workdir):
    """The checkpoints in a work directory, as text."""
    paths = sorted(workdir.glob('stage_*/checkpoints/*'))
    return ', '.join(f'{path.parent.parent.name}/{path.name}' for path in paths) or 'nothing'


def kill_test(num_runs, seed, folder, kills=None, flags=()):
    """Raises AssertionError if a killed run ends with other results than an undisturbed one."""
    rng, undisturbed = random.Random(seed), folder / 'undisturbed'
    finish(undisturbed, flags)
    num_records, num_stages = len(runs.records(undisturbed)), len([*undisturbed.glob('stage_*')])
    for index in range(num_runs):
        workdir, statuses = folder / f'killed_{index}', []
        plan = random_moments(rng, kills, num_records) if kills else moments()
        for kill, (name, condition, longest) in enumerate(plan):
            delay = rng.uniform(0, longest)
            number = signal.SIGTERM if kill % 4 == (index + 1) % 4 else signal.SIGKILL
            statuses.append(kill_once(workdir, condition, delay, number, flags))
            words = f'run {index + 1}, {name} + {delay:.2f} s, {number.name}: status {statuses[-1]}'
            print(f'{words}, left {left(workdir)}', flush=True)
        finish(workdir, flags)
        runs.assert_same(workdir, undisturbed, num_stages)
        killed = sum(status != 0 for status in statuses)
        print(f'run {index + 1} of {num_runs}: killed {killed} times, every bit equal', flush=True)
        shutil.rmtree(workdir)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--runs', type=int, default=2)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--kills', type=int, help='Random moments instead of the ten.')
    arguments, training_flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', f'{temporary}/compiled')
        kill_test(arguments.runs, arguments.seed, Path(temporary), arguments.kills, training_flags)
