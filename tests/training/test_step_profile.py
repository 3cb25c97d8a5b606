"""Profiles of a few steps; tests/test_evaluation_in_stage.py records one in a run."""

from pathlib import Path

import pytest

from simcis_jax.training.step_profile import StepProfile


@pytest.fixture(autouse=True)
def traces(monkeypatch):
    """The folders that were traced; they are created, and nothing is recorded."""
    folders = []
    monkeypatch.setattr(
        'jax.profiler.start_trace', lambda folder: (folders.append(folder), Path(folder).mkdir())
    )
    monkeypatch.setattr('jax.profiler.stop_trace', lambda: None)
    return folders


def train(steps, first, last, folder):
    with StepProfile(2, (first, last), folder) as profile:
        for step in steps:
            profile.before(step)
            profile.after(step, ())


@pytest.mark.parametrize('steps', [range(1, 9), range(4, 9), range(1, 5)])
def test_the_steps_of_the_range_that_are_trained_are_profiled(steps, traces, tmp_path, capsys):
    folder = tmp_path / 'profile'
    train(steps, 3, 6, folder)
    assert traces == [str(folder)]
    assert capsys.readouterr().out == f'profile written to {folder}\n'
    train(range(7, 9), 3, 6, folder)  # A run that resumes after these steps.
    assert not capsys.readouterr().out


@pytest.mark.parametrize('steps', [range(1, 3), range(7, 9), range(0)])
def test_a_range_of_which_no_step_is_trained_is_reported(steps, traces, tmp_path, capsys):
    train(steps, 3, 6, tmp_path / 'profile')
    assert not traces
    message = 'stage 2 has none of the steps in training.profile_steps=3,6: nothing is profiled\n'
    assert capsys.readouterr().out == message


def test_an_interrupted_stage_says_nothing_of_steps_to_come(traces, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt), StepProfile(1, (3, 6), tmp_path / 'profile'):
        raise KeyboardInterrupt
    assert not traces and not capsys.readouterr().out


def test_without_a_range_nothing_is_printed(traces, tmp_path, capsys):
    train(range(1, 9), 0, 0, tmp_path)
    assert not traces and not capsys.readouterr().out
