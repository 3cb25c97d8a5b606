"""Time that saving checkpoints of the published size adds to training.

    python -m benchmarks.checkpoint_cost --folder=DIR --config=configs/ade_cps_100_10.py

Saves a random train state of the config's shapes in the same way as training: `save` blocks the
step loop until the state is copied; writing, checksums and fsync then run in the background. The
share of training time is printed twice: for the blocking part, and as if writing blocked the steps
too. No training step is run, so the result depends on DIR and the CPU, not on the accelerator.

The state is that of the first stage. Later stages of some methods train few parameters, and the
others have no optimizer state: --stage=2.
"""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from simcis_jax.errors import InputError
from simcis_jax.settings.method_choice import resolve
from simcis_jax.settings.validated import Settings, from_config
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.optimizer import make_optimizer
from simcis_jax.training.programs import frozen_parameters
from simcis_jax.types import TrainState

CONFIG = config_flags.DEFINE_config_file('config', 'configs/ade_cps_100_10.py', 'Config file.')
FOLDER = flags.DEFINE_string('folder', None, 'New folder on the disk to measure.', required=True)
NUM_CLASSES = flags.DEFINE_integer('num_classes', 150, 'Number of classes of the data set.')
RATE = flags.DEFINE_float('steps_per_second', 5.0, 'Assumed training speed.')
STAGE = flags.DEFINE_integer('stage', 1, 'Stage whose state is saved.', lower_bound=1)
REPEATS = flags.DEFINE_integer('repeats', 5, 'Number of checkpoints to time.')


def random_state(settings: Settings, num_classes: int, number: int = 1) -> TrainState:
    """A train state of stage `number`; random, so that it compresses like trained weights.

    Raises:
        InputError: there is no such stage.
    """
    stages = settings.protocol.stages(num_classes)
    if number > len(stages):
        raise InputError(f'--stage={number} must be at most {len(stages)}, the last stage.')
    model = settings.method.make_model(stages, settings.model)
    frozen = frozen_parameters(settings, model, stages)[number - 1]
    size = settings.data.size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)['params']
    rng = np.random.default_rng(0)

    def fill(x: Any) -> jax.Array:
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.asarray(rng.normal(size=x.shape) if is_float else np.zeros(x.shape), x.dtype)

    optimizer = make_optimizer(shapes, settings.optimizer, frozen)
    memory = jax.eval_shape(lambda: settings.method.init_memory(num_classes, model.hidden_dim))
    params, opt_state, memory = jax.tree.map(
        fill, (shapes, jax.eval_shape(optimizer.init, shapes), memory)
    )
    return TrainState(jnp.int32(0), params, opt_state, memory, jax.random.key(0), jnp.int32(0))


def main(_) -> None:
    """Runs the benchmark and prints the results."""
    logging.set_verbosity(logging.ERROR)  # Orbax warns about saves without steps in between.
    settings = from_config(resolve(CONFIG.value.to_dict()))
    every = settings.training.checkpoint_every
    state = jax.block_until_ready(random_state(settings, NUM_CLASSES.value, STAGE.value))
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    waits, writes = [], []
    folder = Path(FOLDER.value)
    folder.mkdir(parents=True)
    try:
        with StageCheckpoints(folder / 'checkpoints') as checkpoints:
            for step in range(REPEATS.value + 1):
                start = time.perf_counter()
                checkpoints.save(step, state)
                saved = time.perf_counter()
                checkpoints.wait()
                if step:  # The first save also starts threads.
                    waits.append(saved - start)
                    writes.append(time.perf_counter() - saved)
    finally:
        shutil.rmtree(folder)
    wait, write = statistics.median(waits), statistics.median(writes)
    interval = every / RATE.value
    print(f'state                          {size / 2**20:8.0f} MiB')
    print(f'step loop blocked              {wait:8.2f} s ({min(waits):.2f} to {max(waits):.2f})')
    print(f'writing in the background      {write:8.2f} s ({min(writes):.2f} to {max(writes):.2f})')
    print(
        f'between checkpoints            {interval:8.0f} s: {every} steps, {RATE.value} per second'
    )
    print(f'share of training time blocked {wait / interval:8.2%}')
    print(f'share if writing also blocked  {(wait + write) / interval:8.2%}')


if __name__ == '__main__':
    app.run(main)
