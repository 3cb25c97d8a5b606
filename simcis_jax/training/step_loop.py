"""The step loop of a stage: batches in, a trained state and its checkpoints out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
from jax import Array

from simcis_jax.data.pipeline import TrainIterator
from simcis_jax.runtime.interruption import Interrupted, StopRequest
from simcis_jax.runtime.progress import Progress
from simcis_jax.settings import TrainingSettings
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.metrics_log import MetricsLog
from simcis_jax.training.nonfinite import NonfiniteSteps
from simcis_jax.training.train_step import TrainState
from simcis_jax.types import Batch

# Metrics worth a place in the progress line; the log has them all.
SHOWN = ('total', 'class', 'mask', 'dice', 'box', 'giou', 'csl', 'decoder_kl')


def run_steps(
    update: Callable[[TrainState, Batch], tuple[TrainState, Mapping[str, Array]]],
    state: TrainState,
    data: TrainIterator,
    *,
    stage: int,
    num_steps: int,
    training: TrainingSettings,
    checkpoints: StageCheckpoints,
    log: MetricsLog | None,
    nonfinite: NonfiniteSteps,
    stop: StopRequest,
) -> TrainState:
    """Trains from the step of `state` to the last of the stage.

    Raises:
        NonfiniteError: more steps than allowed were not finite.
        Interrupted: a signal asked to stop; the last step is in a checkpoint.
        FileError: a checkpoint could not be written.
    """
    first = int(state.step)
    progress = Progress(f'stage {stage} step', num_steps, 'steps', done=first)
    data.seek(first)
    for step in range(first + 1, num_steps + 1):
        state, metrics = update(state, next(data))
        nonfinite.add(step, metrics)
        numbers = None
        if step % training.log_every == 0 or step == num_steps:
            nonfinite.check()
            numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if log is not None:
                log.write(step, numbers, progress.rate)
            numbers = {n: v for n, v in numbers.items() if n in SHOWN}
        if step == first + 1:
            jax.block_until_ready(metrics)
            progress.skip()  # The first step compiles.
        else:
            progress.advance(numbers=numbers)
        is_asked_to_stop = stop.after_step()
        if step % training.checkpoint_every == 0 or step == num_steps or is_asked_to_stop:
            nonfinite.check()
            checkpoints.save(step, state)
        if is_asked_to_stop:
            checkpoints.wait()
            raise Interrupted(stop.number, f'after step {step} of stage {stage}')
    return state
