"""Stopped, killed or damaged runs end with the same numbers, or say why they cannot continue."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import kill_test
import numpy as np
import pytest
import runs
from tiny import tiny_config

from simcis_jax import main
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.workdir import Workdir
from simcis_jax.types import Categories


def newest_step(workdir, stage):
    with StageCheckpoints(workdir / f'stage_{stage}' / 'checkpoints') as checkpoints:
        return checkpoints.latest_step


@pytest.mark.slow
def test_a_crashed_run_resumes_from_its_last_checkpoint(finished, tmp_path, monkeypatch):
    def crash(_):
        raise RuntimeError('the machine is gone')

    with monkeypatch.context() as patch:
        runs.at_step(patch, 9, crash)
        with pytest.raises(RuntimeError):
            main.run(tiny_config(), str(tmp_path))
    assert newest_step(tmp_path, 2) == 2
    assert main.run(tiny_config(), str(tmp_path)) == finished[1]
    runs.assert_same(tmp_path, finished[0])


def test_sigterm_finishes_the_step_and_saves_a_checkpoint(finished, tmp_path, monkeypatch, capsys):
    def terminate(batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return batch

    workdir = shutil.copytree(finished[0], tmp_path / 'run')
    shutil.rmtree(workdir / 'stage_3')
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        runs.at_step(patch, 3, terminate)
        with pytest.raises(SystemExit) as stopped:
            main.run(tiny_config(), str(workdir))
    assert stopped.value.code == 143
    lines = capsys.readouterr().err.split('\n')
    assert (
        'SIGTERM: stopped after step 3 of stage 3; run the same command again to resume.' in lines
    )
    assert signal.getsignal(signal.SIGTERM) == before
    assert newest_step(workdir, 3) == 3
    # A resumed run may change the number of workers and of checkpoints.
    changes = {'data.num_workers': 1, 'training.checkpoint_every': 3}
    assert main.run(tiny_config(**changes), str(workdir)) == finished[1]
    runs.assert_same(workdir, finished[0])


@pytest.mark.slow
def test_a_kill_while_a_checkpoint_is_written_changes_no_result(finished, tmp_path):
    moments = {name: condition for name, condition, _ in kill_test.moments()}
    writing = moments['stage 2 writes a checkpoint']
    assert kill_test.kill_once(tmp_path, writing, 0.0, signal.SIGKILL) == -signal.SIGKILL
    assert main.run(tiny_config(), str(tmp_path)) == finished[1]
    runs.assert_same(tmp_path, finished[0])


@pytest.mark.slow
def test_ten_kills_change_no_result(tmp_path):
    kill_test.kill_test(num_runs=1, seed=1, folder=tmp_path)


def test_a_damaged_checkpoint_is_removed_and_its_steps_are_repeated(finished, tmp_path, capsys):
    workdir = shutil.copytree(finished[0], tmp_path / 'run')
    (workdir / 'stage_3' / 'evaluation.json').unlink()
    (workdir / 'stage_3' / 'checkpoints' / '4' / 'rest' / 'manifest.ocdbt').unlink()
    (workdir / 'stage_1' / 'counts').mkdir()  # Killed after the scores were written.
    assert main.run(tiny_config(), str(workdir)) == finished[1]
    output = capsys.readouterr().out
    assert re.search(r'4 is damaged and was removed: rest/manifest.ocdbt is missing', output)
    assert 'continuing stage 3 from step 2' in output
    assert not (workdir / 'stage_1' / 'counts').exists()
    runs.assert_same(workdir, finished[0])


def test_a_damaged_teacher_is_an_error(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / 'run')
    shutil.rmtree(workdir / 'stage_3')
    (workdir / 'stage_2' / 'checkpoints' / '4' / 'params' / '_METADATA').write_text('{}')
    with pytest.raises(ValueError, match='stage_2/checkpoints/4 is damaged: params/_METADATA has'):
        main.run(tiny_config(), str(workdir))


def test_a_step_with_nan_stops_the_run_and_saves_its_batch(tmp_path, monkeypatch, capsys):
    changes = {'protocol.base': 12, 'training.log_every': 100, 'training.base_steps': 5}
    changes['training.checkpoint_every'] = 2
    poisoned = []

    def poison(batch):
        poisoned.append(batch)
        boxes = np.full_like(batch.targets.boxes, np.nan)
        return batch.replace(targets=batch.targets.replace(boxes=boxes))

    with monkeypatch.context() as patch:
        runs.at_step(patch, 3, poison)
        with pytest.raises(FloatingPointError) as stopped:
            main.run(tiny_config(**changes), str(tmp_path))
    message = str(stopped.value)
    assert re.match(r'stage 1, step 3: box, giou, gradient_norm, total not finite', message)
    # The run stopped before the checkpoint of step 4.
    assert newest_step(tmp_path, 1) == 2
    saved = np.load(tmp_path / 'stage_1' / 'nonfinite_step_3_process_0.npz')
    np.testing.assert_array_equal(saved['image'], poisoned[0].image)
    np.testing.assert_array_equal(saved['boxes'], poisoned[0].targets.boxes)
    ids = ', '.join(map(str, saved['image_id']))
    assert f'images {ids}, is saved in {tmp_path}' in message

    changes['training.skip_nonfinite'] = 1
    with monkeypatch.context() as patch:
        runs.at_step(patch, 1, poison)
        main.run(tiny_config(**changes), str(tmp_path))
    assert 'total not finite; skipped, 1 of 1 allowed' in capsys.readouterr().out
    np.testing.assert_array_equal(poisoned[1].image, poisoned[0].image)
    (record,) = map(json.loads, (tmp_path / 'metrics.jsonl').read_text().splitlines())
    assert record['skipped_steps'] == 1 and record['step'] == 5
    assert all(np.isfinite(x).all() for x in runs.leaves(tmp_path, stage=1))


def test_two_processes_may_not_use_a_folder_at_once(tmp_path):
    workdir, categories = tmp_path / 'run', Categories(('sky',), (False,), ((0, 0, 0),))
    code = (
        'import sys, time; from simcis_jax.training.workdir import Workdir\n'
        'from simcis_jax.types import Categories\n'
        'workdir = Workdir(sys.argv[1], {})\n'
        'workdir.claim(Categories(("sky",), (False,), ((0, 0, 0),)))\n'
        'print("claimed", flush=True); time.sleep(600)'
    )
    other = subprocess.Popen([sys.executable, '-c', code, workdir], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b'claimed\n'
        with pytest.raises(OSError, match=rf'run is used by another .*process {other.pid} on'):
            Workdir(workdir, {}).claim(categories)
    finally:
        other.kill()
        other.wait()
    with Workdir(workdir, {}) as mine:
        mine.claim(categories)
    with Workdir(workdir, {}) as mine:  # The lock ends with the block.
        mine.claim(categories)
