"""Two processes, one of which fails: both end soon, and the other names the cause."""

import subprocess
import time

import commands
import pytest

from simcis_jax.runtime.failures import HEARTBEAT

# One process fails while the other waits for it.
PROGRAM = """
import os, signal, sys, time
import jax
from simcis_jax.errors import FileError
from simcis_jax.runtime import failures, parallel

failing, how = int(sys.argv[1]), sys.argv[2]
parallel.start_processes()
with failures.end_together():
    parallel.wait_for_all('start')
    print('started', flush=True)
    if jax.process_index() == failing:
        time.sleep(1)
        if how == 'kill':
            os.kill(os.getpid(), signal.SIGKILL)
        raise FileError('disk.png cannot be read.') if how == 'user' else KeyError('a bug')
    if how == 'asleep':
        time.sleep(600)
    parallel.wait_for_all('end')
"""


def start_two(program, *arguments):
    """Starts two processes of one run."""
    return [
        commands.start(
            program,
            *arguments,
            environment=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for environment in commands.cluster_environments(2)
    ]


def fail_together(failing, how):
    """Runs the program; returns output and status of both, and how long the end took."""
    processes = start_two(('-c', PROGRAM), failing, how)
    try:
        for process in processes:
            while (line := process.stdout.readline()) != 'started\n':
                assert line or process.poll() is None, process.stderr.read()
        start = time.monotonic()
        errors = [process.communicate(timeout=120)[1] for process in processes]
        return errors, [p.returncode for p in processes], time.monotonic() - start
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize(('failing', 'how'), [(0, 'user'), (1, 'asleep')])
def test_the_other_process_names_the_first_cause(failing, how):
    errors, status, seconds = fail_together(failing, how)
    assert status == [1, 1], errors
    cause = 'KeyError' if how == 'asleep' else 'FileError: disk.png cannot be read.'
    (line,) = [x for x in errors[1 - failing].splitlines() if x.startswith('error: ')]
    begin = f'error: this process ends because of another: process {failing} on'
    assert line.startswith(begin)
    assert cause in line
    own = errors[failing]
    assert ('Traceback' in own) == (how == 'asleep') and 'because of another' not in own
    assert seconds < 10


@pytest.mark.slow
@pytest.mark.parametrize('failing', [0, 1])
def test_a_process_that_is_killed_ends_the_other(failing):
    errors, status, seconds = fail_together(failing, 'kill')
    assert status[failing] == -9 and status[1 - failing] != 0, errors
    assert seconds < HEARTBEAT + 3
    if failing == 1:  # Without process 0 there is nobody who could tell.
        assert 'error: process 1 does not answer: killed, or its machine is gone' in errors[0]


def test_the_training_command_finds_its_processes_before_it_reads_the_config(tmp_path):
    processes = start_two(
        commands.MAIN, '--distributed', '--config=absent', f'--workdir={tmp_path}'
    )
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [1, 1], outputs
    for _, errors in outputs:
        assert 'Traceback' not in errors and 'absent' in errors


def test_processes_that_end_well_leave_no_thread_that_aborts_them():
    processes = start_two(('-c', PROGRAM), -1, '')
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
