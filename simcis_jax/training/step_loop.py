"""The step loop of a stage: trains on batches, logs metrics, evaluates and saves checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
from jax import Array

from simcis_jax.data.pipeline import TrainIterator
from simcis_jax.runtime.interruption import Interrupted, StopRequest
from simcis_jax.runtime.progress import Progress
from simcis_jax.settings.keys import TrainingSettings
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.metrics_log import MetricsLog, is_loss
from simcis_jax.training.nonfinite import NonfiniteSteps
from simcis_jax.training.stage_evaluation import EvaluationInStage
from simcis_jax.training.step_clock import StepClock
from simcis_jax.training.step_profile import StepProfile
from simcis_jax.types import Batch, TrainState


@dataclasses.dataclass(frozen=True)
class StageSteps:
    """The steps of a stage.

    Attributes:
        stage: its number, from 1.
        num_steps: its length.
        steps_after: steps of all later stages, for the estimate of the time left.
        update: one step: (state, batch) -> (new state, metrics).
        finish: called once after the last step, before the state is saved.
    """

    stage: int
    num_steps: int
    steps_after: int
    update: Callable[[TrainState, Batch], tuple[TrainState, Mapping[str, Array]]]
    finish: Callable[[TrainState], TrainState]


@dataclasses.dataclass(frozen=True)
class StepHooks:
    """What is done between the steps of a stage; see the classes. Only one process has a log."""

    checkpoints: StageCheckpoints
    evaluation: EvaluationInStage
    log: MetricsLog | None
    profile: StepProfile
    nonfinite: NonfiniteSteps
    stop: StopRequest


def run_steps(
    steps: StageSteps,
    state: TrainState,
    data: TrainIterator,
    hooks: StepHooks,
    training: TrainingSettings,
) -> TrainState:
    """Trains from the step of `state` to the last step of the stage.

    The host runs one step ahead of the device and waits for the step before it, so the measured
    speed is that of finished steps.

    Raises:
        NonfiniteError: more steps than allowed had a non-finite loss or gradient.
        Interrupted: a signal requested a stop; a checkpoint of the last step was saved.
        FileError: a checkpoint could not be written.
    """
    stage, num_steps, first = steps.stage, steps.num_steps, int(state.step)
    checkpoints, evaluation, stop = hooks.checkpoints, hooks.evaluation, hooks.stop
    progress = Progress(
        f'stage {stage} step',
        num_steps,
        'steps',
        done=first,
        after=steps.steps_after,
        seconds_after=evaluation.seconds_to_come(first),
    )
    clock = StepClock(training.batch_size)

    def evaluate(step, state):
        with clock.measure('evaluation'), progress.paused(), stop.at_once():
            evaluation.evaluate(step, state)
        progress.seconds_after = evaluation.seconds_to_come(step)

    data.seek(first)
    if evaluation.is_due(first):  # The run was stopped before or during this evaluation.
        evaluate(first, state)
    before = None
    for step in range(first + 1, num_steps + 1):
        with clock.measure('data'):
            batch = next(data)
        hooks.profile.before(step)
        if step == first + 1:
            state, metrics = jax.block_until_ready(steps.update(state, batch))  # Compiles.
            progress.skip()
            clock.restart()
        else:
            state, metrics = steps.update(state, batch)
            clock.step()
        hooks.nonfinite.add(step, metrics)
        jax.block_until_ready(before)
        before = metrics
        hooks.profile.after(step, metrics)
        is_logged = step % training.log_every == 0 or step == num_steps
        numbers = None
        if is_logged:
            hooks.nonfinite.check()
            numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if hooks.log is not None:
                hooks.log.write(step, numbers | clock.numbers())
            # The progress line shows the losses only.
            numbers = {name: value for name, value in numbers.items() if is_loss(name)}
        if step > first + 1:
            progress.advance(numbers=numbers)
        if step == num_steps:  # Before it is saved, so that a resumed stage is not finished twice.
            state = steps.finish(state)
        evaluates, stop_requested = evaluation.is_due(step), stop.after_step()
        if (
            step % training.checkpoint_every == 0
            or step == num_steps
            or evaluates
            or stop_requested
        ):
            hooks.nonfinite.check()
            with clock.measure('checkpoint'), progress.paused():
                checkpoints.save(step, state)
        if stop_requested:
            checkpoints.wait()
            raise Interrupted(stop.number, f'after step {step} of stage {stage}')
        if evaluates:
            checkpoints.wait()
            evaluate(step, state)
    return state
