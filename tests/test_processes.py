"""The command on several devices and in several processes: the same results, written once."""

import json
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import commands
import jax
import numpy as np
import pytest
import runs
from random_params import save_stage_2

from simcis_jax.training import manifest
from simcis_jax.training.checkpointing import StageCheckpoints

pytestmark = pytest.mark.slow

# Runs the command and reports every file that it opens for writing.
WATCHED = """
import os, runpy, sys

def report(event, arguments):
    if event == 'open':
        path, mode, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR) if mode is None else set(mode) & set('wax+')
        if writes and isinstance(path, str):
            print('WRITES', path, file=sys.stderr)

sys.addaudithook(report)
sys.argv[0] = 'main'
runpy.run_module('simcis_jax.main', run_name='__main__')
"""


def start_two(workdir, *flags, watched=False):
    """Starts two processes of one run; with `watched`, the second reports the files it writes."""
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    return [
        commands.start_run(
            workdir,
            '--distributed',
            *flags,
            program=('-c', WATCHED) if watched and index else commands.MAIN,
            environment=environment,
            **pipes,
        )
        for index, environment in enumerate(commands.cluster_environments(2))
    ]


def finish(processes, status=0):
    """Waits for the processes; returns (stdout, stderr) of each."""
    with ThreadPoolExecutor() as pool:  # In parallel: a process with a full pipe blocks both.
        outputs = list(pool.map(subprocess.Popen.communicate, processes))
    assert [process.returncode for process in processes] == [status] * len(processes), outputs
    return outputs


def evaluate(stage, workdir, *flags, processes=1, devices=1):
    """Runs --mode=evaluate on a stage and returns its report."""
    flags = '--mode=evaluate', f'--config.training.init_from={stage}', *flags
    if processes == 2:
        finish(start_two(workdir, *flags))
    else:
        environment = {'JAX_NUM_CPU_DEVICES': str(devices)}
        finish([commands.start_run(workdir, *flags, environment=environment)])
    return json.loads((workdir / stage.name / 'evaluation.json').read_text())


@pytest.mark.parametrize(('processes', 'devices'), [(1, 2), (1, 4), (2, 1)])
def test_scores_do_not_depend_on_the_number_of_devices(finished, tmp_path, processes, devices):
    stage = finished[0] / 'stage_3'
    report = evaluate(stage, tmp_path / 'run', processes=processes, devices=devices)
    assert report == json.loads((stage / 'evaluation.json').read_text())


def test_a_model_is_extended_by_classes_in_two_processes(tmp_path):
    stage, _, _ = save_stage_2(tmp_path / 'old', 10)
    grown = []
    for processes in (1, 2):
        workdir = tmp_path / f'{processes}_processes'
        evaluate(stage, workdir, '--config.protocol.added=(2,)', processes=processes)
        with StageCheckpoints(workdir / 'stage_2' / 'checkpoints') as checkpoints:
            grown.append({item: checkpoints.read(item) for item in ('params', 'memory')})
    assert grown[0]['params']['heads']['class_head']['dense']['bias'].shape == (12,)
    jax.tree.map(np.testing.assert_array_equal, *grown)


def test_a_run_of_two_processes_stops_resumes_and_only_the_main_process_writes(finished, tmp_path):
    workdir = tmp_path / 'run'
    processes = start_two(workdir)
    while not (workdir / 'stage_1' / 'checkpoints' / '2').exists():
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    outputs = finish(processes, status=128 + signal.SIGTERM)
    assert all('SIGTERM: stopped after step' in errors for _, errors in outputs)
    assert not (workdir / 'results.json').exists()

    (_, _), (printed, errors) = finish(start_two(workdir, watched=True))
    assert 'stage' not in printed  # Only the main process reports progress; Gloo may print.
    written = [line.split()[1] for line in errors.splitlines() if line.startswith('WRITES')]
    in_run = [path for path in written if path.startswith(str(workdir))]
    # Every process writes its part of a checkpoint and the counts of its images, nothing else.
    own = re.compile(r'/checkpoints/|/counts/process_1(/|$)')
    assert [path for path in in_run if not own.search(path)] == []
    results = json.loads((workdir / 'results.json').read_text())
    assert [report['stage'] for report in results['stages']] == [1, 2, 3]
    records = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    # No step is repeated or missing; test_parallel_training.py compares the numbers.
    expected = (finished[0] / 'metrics.jsonl').read_text().splitlines()
    assert [r['step'] for r in records] == [json.loads(line)['step'] for line in expected]
    for folder in workdir.glob('stage_*/checkpoints/*'):
        assert manifest.damage(folder) is None

    # One process continues the finished run and changes nothing.
    before = shutil.copytree(workdir, tmp_path / 'copy')
    finish([commands.start_run(workdir)])
    runs.assert_same(workdir, before)
