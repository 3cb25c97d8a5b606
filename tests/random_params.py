"""Parameters of a module without compiling its initialisers, which takes longer than a test."""

import jax
import numpy as np


def random_params(init, *inputs, seed=0, scale=0.3):
    """Normal parameters for a module, given its `init` and the inputs of that."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda x: rng.normal(0, scale, x.shape).astype(x.dtype), shapes)
