"""Time that training loses to checkpoints of the published size.

    python -m benchmarks.checkpoint_cost --folder=DIR --config=configs/ade_cps_100_10.py

The state of the config, of random numbers, is saved as training saves it: `save` holds the step
loop up until the state is copied, then writing, checksums and fsync go on beside the steps. The
share of training time is given twice: what the loop waits, and what it would be if writing stopped
it too.
No step is computed, so this measures DIR and the processor, not the accelerator.
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

from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.settings import Settings, from_config
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.optimizer import make_optimizer
from simcis_jax.training.train_step import TrainState

CONFIG = config_flags.DEFINE_config_file('config', 'configs/ade_cps_100_10.py', 'Config file.')
FOLDER = flags.DEFINE_string('folder', None, 'New folder on the disk to measure.', required=True)
NUM_CLASSES = flags.DEFINE_integer('num_classes', 150, 'Classes of the data set.')
RATE = flags.DEFINE_float('steps_per_second', 5.0, 'Assumed rate of training.')
REPEATS = flags.DEFINE_integer('repeats', 5, 'Checkpoints to time.')


def random_state(settings: Settings, num_classes: int) -> TrainState:
    """A train state of the right shapes; random, so that it does not compress better."""
    model = Mask2Former(num_classes=num_classes, **settings.model)
    size = settings.data.size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)['params']
    rng = np.random.default_rng(0)

    def fill(x: Any) -> jax.Array:
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.asarray(rng.normal(size=x.shape) if is_float else np.zeros(x.shape), x.dtype)

    optimizer = make_optimizer(shapes, settings.optimizer)
    memory = jax.eval_shape(lambda: settings.method.init_memory(num_classes, model.hidden_dim))
    params, opt_state, memory = jax.tree.map(
        fill, (shapes, jax.eval_shape(optimizer.init, shapes), memory)
    )
    return TrainState(jnp.int32(0), params, opt_state, memory, jax.random.key(0), jnp.int32(0))


def main(_) -> None:
    """Measures and prints."""
    logging.set_verbosity(logging.ERROR)  # Orbax warns that there is no step between two saves.
    settings = from_config(CONFIG.value.to_dict())
    every = settings.training.checkpoint_every
    state = jax.block_until_ready(random_state(settings, NUM_CLASSES.value))
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
                if step:  # The first one starts threads.
                    waits.append(saved - start)
                    writes.append(time.perf_counter() - saved)
    finally:
        shutil.rmtree(folder)
    wait, write = statistics.median(waits), statistics.median(writes)
    interval = every / RATE.value
    print(f'state                          {size / 2**20:8.0f} MiB')
    print(f'step loop waits                {wait:8.2f} s ({min(waits):.2f} to {max(waits):.2f})')
    print(f'writing goes on beside it      {write:8.2f} s ({min(writes):.2f} to {max(writes):.2f})')
    print(f'between checkpoints            {interval:8.0f} s: {every} steps, {RATE.value} a second')
    print(f'share that the loop waits      {wait / interval:8.2%}')
    print(f'share if writing stopped it    {(wait + write) / interval:8.2%}')


if __name__ == '__main__':
    app.run(main)
