"""Profiles of a few steps; tests/test_evaluation_in_stage.py records one in a run."""

import pytest

from simcis_jax.training.step_profile import StepProfile


@pytest.fixture(autouse=True)
def traces(monkeypatch):
    """The folders that were traced; nothing is recorded."""
    folders = []
    monkeypatch.setattr('jax.profiler.start_trace', folders.append)
    monkeypatch.setattr('jax.profiler.stop_trace', lambda: None)
    return folders


def train(steps, first, last, folder):
    with StepProfile((first, last), folder) as profile:
        for step in steps:
            profile.before(step)
            profile.after(step, ())


@pytest.mark.parametrize('steps', [range(1, 9), range(4, 9), range(1, 5)])
def test_the_steps_of_the_range_that_are_trained_are_profiled(steps, traces, tmp_path, capsys):
    train(steps, 3, 6, tmp_path)
    assert traces == [str(tmp_path)]
    assert capsys.readouterr().out == f'profile written to {tmp_path}\n'


@pytest.mark.parametrize('steps', [range(1, 3), range(7, 9), range(0)])
def test_a_range_of_which_no_step_is_trained_is_reported(steps, traces, tmp_path, capsys):
    train(steps, 3, 6, tmp_path)
    assert not traces
    assert 'nothing is profiled: of training.profile_steps=3,6' in capsys.readouterr().out


def test_without_a_range_nothing_is_printed(traces, tmp_path, capsys):
    train(range(1, 9), 0, 0, tmp_path)
    assert not traces and not capsys.readouterr().out
