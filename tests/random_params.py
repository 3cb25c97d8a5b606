"""Random parameters drawn with NumPy, as compiling the initialisers would take too long."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny import tiny_config

from simcis_jax.continual.virtual_query import QueryBank
from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.settings.validated import from_config
from simcis_jax.training.checkpointing import StageCheckpoints


def random_params(init, *inputs, seed=0, scale=0.3):
    """Normally distributed parameters for a module, given its `init` and the inputs of `init`."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda x: rng.normal(0, scale, x.shape).astype(x.dtype), shapes)


def save_stage_2(folder, num_classes, scale=0.3):
    """Writes a stage 2 as the converter does: weights and a bank, no report, no stage 1."""
    settings = from_config(tiny_config().to_dict())
    model = Mask2Former(num_classes, **settings.model)
    size = settings.data.size
    image = jnp.zeros((1, size, size, 3), jnp.uint8)
    params = random_params(model.init, image, scale=scale)['params']
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(num_classes, settings.method.bank_size, model.hidden_dim))
    bank = QueryBank(
        queries.astype(np.float32),
        np.full(num_classes, 3, np.int32),
        np.arange(num_classes, dtype=np.float32),
    )
    with StageCheckpoints(folder / 'stage_2' / 'checkpoints') as checkpoints:
        checkpoints.save_weights(0, params, bank)
    return folder / 'stage_2', params, bank
