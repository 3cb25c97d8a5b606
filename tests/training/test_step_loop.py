"""The step loop: signals, and the time that a run will take."""

import os
import re
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest

from simcis_jax.runtime import interruption
from simcis_jax.settings.keys import TrainingSettings
from simcis_jax.training.step_loop import StageSteps, StepHooks, run_steps


class Evaluation:
    """An evaluation that a signal interrupts."""

    finished = False

    def is_due(self, step):
        return step == 3

    def seconds_to_come(self, step):
        return 0.0

    def evaluate(self, step, state):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)  # Python calls the handler here at the latest.
        self.finished = True


def test_a_signal_stops_a_resumed_evaluation_at_once(capsys):
    evaluation, before = Evaluation(), signal.getsignal(signal.SIGTERM)
    interruption.stop_at_once()  # As the command does.
    try:
        with interruption.StopRequest() as stop, pytest.raises(SystemExit) as stopped:
            run_steps(
                StageSteps(stage=1, num_steps=9, steps_after=0, update=None, finish=None),
                SimpleNamespace(step=3),
                SimpleNamespace(seek=lambda step: None),
                StepHooks(None, evaluation, log=None, profile=None, nonfinite=None, stop=stop),
                TrainingSettings(),
            )
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert stopped.value.code == 128 + signal.SIGTERM and not evaluation.finished
    assert 'run the same command again to resume' in capsys.readouterr().err


class Batches:
    """Batches that nobody reads."""

    def seek(self, step):
        pass

    def __next__(self):
        return None


class Checkpoints:
    """A signal comes while the last checkpoint is saved."""

    saved = ()

    def save(self, step, state):
        self.saved += (step,)
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_after_the_last_step_stops_before_the_next_stage(capsys):
    def update(state, batch):
        return SimpleNamespace(step=state.step + 1), {'total': np.float32(0)}

    checkpoints, before = Checkpoints(), signal.getsignal(signal.SIGTERM)
    ignored = SimpleNamespace(
        before=lambda *_: None, after=lambda *_: None, add=lambda *_: None, check=lambda: None
    )
    evaluation = SimpleNamespace(is_due=lambda step: False, seconds_to_come=lambda step: 0.0)
    try:
        with pytest.raises(SystemExit) as stopped, interruption.StopRequest() as stop:
            state = run_steps(
                StageSteps(1, num_steps=3, steps_after=0, update=update, finish=lambda x: x),
                SimpleNamespace(step=0),
                Batches(),
                StepHooks(checkpoints, evaluation, None, ignored, ignored, stop),
                TrainingSettings(),
            )
            assert state.step == 3
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 128 + signal.SIGTERM and checkpoints.saved == (3,)
    assert 'run the same command again to resume' in capsys.readouterr().err


class Hours:
    """Two evaluations, after steps 3 and 6, of one hour each."""

    def is_due(self, step):
        return step in (3, 6)

    def seconds_to_come(self, step):
        return 3600.0 * (2 - step // 3)

    def evaluate(self, step, state):
        pass


def test_the_time_of_the_run_includes_evaluations_to_come(capsys):
    def ignore(*_):
        pass

    steps = StageSteps(
        stage=1,
        num_steps=9,
        steps_after=0,
        update=lambda state, batch: (state, {'total': np.float32(1)}),
        finish=lambda state: state,
    )
    with interruption.StopRequest() as stop:
        hooks = StepHooks(
            checkpoints=SimpleNamespace(save=ignore, wait=ignore),
            evaluation=Hours(),
            log=None,
            profile=SimpleNamespace(before=ignore, after=ignore),
            nonfinite=SimpleNamespace(add=ignore, check=ignore),
            stop=stop,
        )
        training = TrainingSettings(log_every=1)
        run_steps(steps, SimpleNamespace(step=0), Batches(), hooks, training)
    lines = capsys.readouterr().out.splitlines()
    hours = [re.search(r'run left (\d):00:0', line) for line in lines]
    assert [found and found[1] for found in hours] == ['2'] * 2 + ['1'] * 3 + [None] * 3
