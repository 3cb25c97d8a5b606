"""The step loop of a stage: trains on batches, logs metrics and saves checkpoints."""

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

# Metrics on the progress line; the log has all of them.
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
    """Trains from the step of `state` to the last step of the stage.

    Raises:
        NonfiniteError: more steps than allowed had a non-finite loss or gradient.
        Interrupted: a signal requested a stop; a checkpoint of the last step was saved.
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
            progress.skip()  # The first step includes compilation.
        else:
            progress.advance(numbers=numbers)
        stop_requested = stop.after_step()
        if step % training.checkpoint_every == 0 or step == num_steps or stop_requested:
            nonfinite.check()
            checkpoints.save(step, state)
        if stop_requested:
            checkpoints.wait()
            raise Interrupted(stop.number, f'after step {step} of stage {stage}')
    return state
