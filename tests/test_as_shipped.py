"""Training, evaluation and resuming with XLA's default flags, unlike in other tests."""

import json
import shutil
import subprocess

import commands
import evaluated
import numpy as np
import pytest
import runs

pytestmark = pytest.mark.slow  # Compiling with all optimisations takes minutes.


def run_as_shipped(finished, workdir):
    """Trains the stages after stage 1 of the finished run, with XLA's default flags."""
    start = f'--config.training.init_from={finished[0]}/stage_1'
    assert commands.start_run(workdir, start, environment={'XLA_FLAGS': ''}).wait() == 0


@pytest.fixture(scope='module')
def shipped(finished, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('shipped') / 'run'
    run_as_shipped(finished, workdir)
    return workdir


def test_scores_match_the_unoptimised_program():
    process = commands.start(
        [evaluated.__file__, 0, 1, 0], environment={'XLA_FLAGS': ''}, stdout=subprocess.PIPE
    )
    report = json.loads(process.communicate()[0].splitlines()[-1])['report']
    expected, _ = evaluated.evaluate(tasks=('panoptic', 'semantic', 'instance'))
    evaluated.assert_close(report, expected)


def test_first_losses_match_the_unoptimised_program(finished, shipped):
    def first_losses(workdir):
        return next(record for record in runs.records(workdir) if record['stage'] == 2)

    # The first divergence of CSL is a difference of float32 logarithms, near 1e-4.
    expected = pytest.approx(first_losses(finished[0]), rel=1e-3, abs=1e-6)
    assert first_losses(shipped) == expected


def test_a_resumed_run_has_the_same_results_bit_for_bit(finished, shipped, tmp_path):
    workdir = shutil.copytree(shipped, tmp_path / 'run')
    (workdir / 'stage_3' / 'evaluation.json').unlink()
    shutil.rmtree(workdir / 'stage_3' / 'checkpoints' / '4')
    run_as_shipped(finished, workdir)
    runs.assert_same(workdir, shipped)
    assert all(np.isfinite(x).all() for x in runs.leaves(workdir))
