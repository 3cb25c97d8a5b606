"""Equal layers, one after the other, as a loop: a program contains and compiles one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def in_turn(layers: Sequence[nn.Module], x: Any, *arguments: Any) -> Any:
    """`x = layer(x, *arguments)` for every layer.

    The layers are bound, have equal settings and parameters of equal shapes, and return what has
    the shapes and types of `x`. Each keeps its own name and parameters. Without layers, x stays.
    """
    if not layers:
        return x
    # Only a call by its own name creates a layer's parameters or records what is captured of it.
    if any(layers[0].is_mutable_collection(name) for name in ('params', 'intermediates')):
        for layer in layers:
            x = layer(x, *arguments)
        return x
    parameters = [layer.variables['params'] for layer in layers]
    one, _ = layers[0].unbind()

    def step(x, parameters):
        return one.apply({'params': parameters}, x, *arguments), None

    stacked = jax.tree.map(lambda *each: jnp.stack(each), *parameters)
    return jax.lax.scan(step, x, stacked)[0]
