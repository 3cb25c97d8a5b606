"""Signals in the step loop."""

import os
import signal
import time
from types import SimpleNamespace

import pytest

from simcis_jax.runtime import interruption
from simcis_jax.settings.keys import TrainingSettings
from simcis_jax.training.step_loop import StageSteps, StepHooks, run_steps


class Evaluation:
    """An evaluation that a signal interrupts."""

    finished = False

    def is_due(self, step):
        return step == 3

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
