"""Work on as many chunks as there are, known only at run time.

Slots for targets are many and mostly empty: only chunks with a target are computed. A loop of
traced length has no gradient in JAX; that of a sum is given here. It computes each chunk again, so
that memory is needed for one at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _zeros_like(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def stack_chunks(function: Callable, num_chunks: Array, max_chunks: int, *arguments: Any) -> Any:
    """The arrays `function(k, *arguments)` for k < num_chunks, stacked; the rest of `max_chunks` is
    zero.
    """
    shapes = jax.eval_shape(function, num_chunks, *arguments)

    def add(k, stacks):
        found = function(k, *arguments)
        return jax.tree.map(lambda stack, x: stack.at[k].set(x), stacks, found)

    stacks = jax.tree.map(lambda x: jnp.zeros((max_chunks, *x.shape), x.dtype), shapes)
    return jax.lax.fori_loop(0, num_chunks, add, stacks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def sum_chunks(function: Callable, num_chunks: Array, inputs: Any, constants: Any) -> Any:
    """The sum of `function(k, inputs, constants)` over k < num_chunks.

    Args:
        function: to arrays; it must not close over traced ones.
        num_chunks: [] int32.
        inputs: arrays that have a gradient.
        constants: arrays that have none.
    """
    zeros = _zeros_like(jax.eval_shape(function, num_chunks, inputs, constants))
    return jax.lax.fori_loop(
        0, num_chunks, lambda k, total: _add(total, function(k, inputs, constants)), zeros
    )


def _forward(function, num_chunks, inputs, constants):
    return sum_chunks(function, num_chunks, inputs, constants), (num_chunks, inputs, constants)


def _backward(function, saved, gradient):
    num_chunks, inputs, constants = saved

    def add(k, total):
        _, pull_back = jax.vjp(lambda inputs: function(k, inputs, constants), inputs)
        return _add(total, *pull_back(gradient))

    return None, jax.lax.fori_loop(0, num_chunks, add, _zeros_like(inputs)), None


sum_chunks.defvjp(_forward, _backward)
