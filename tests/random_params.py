"""Parameters of a module without compiling its initialisers, which takes longer than a test."""

import jax
import numpy as np


def random_params(init, *inputs):
    """Normal parameters for a module, given its `init` and the inputs of that."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), shapes)
