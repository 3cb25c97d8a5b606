"""Loops over a number of chunks that is known only at run time.

Most target slots are empty, so only the chunks that hold a target are computed. JAX cannot
differentiate a loop of traced length; the gradient of the sum is defined here. It recomputes each
chunk, so that memory is needed for one chunk at a time.
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
    """Stacks `function(k, *arguments)` for k < num_chunks into arrays [max_chunks, ...].

    Rows from `num_chunks` on are zero.
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
        function: returns a tree of arrays; must not close over traced arrays.
        num_chunks: [] int32.
        inputs: tree of arrays to differentiate by.
        constants: tree of arrays without gradient.
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
