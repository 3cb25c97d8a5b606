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
    # Were it a constant, XLA would share other zeros of the same shape, and keep them until here.
    zero = jax.lax.optimization_barrier(jnp.float32(0))
    return jax.tree.map(lambda x: jnp.full(x.shape, zero, x.dtype), shapes)


def sum_chunks(
    function: Callable,
    num_chunks: Array,
    inputs: Any,
    constants: Any,
    *,
    prepare: Callable = lambda k, inputs, constants: (),
    max_chunks: int = 1,
    max_kept: int = 1,
) -> Any:
    """The sum of `function(k, inputs, prepare(k, inputs, constants), constants)`, k < num_chunks.

    The functions must not close over traced arrays.

    Args:
        function: returns a tree of arrays.
        num_chunks: [] int32.
        inputs: tree of arrays to differentiate by.
        constants: tree of arrays without gradient.
        prepare: returns a tree of arrays that get no gradient.
        max_chunks: upper bound of `num_chunks`, if anything is prepared.
        max_kept: number of chunks, at least 1, whose prepared arrays are kept for the backward
            pass; those of other chunks are computed again.
    """
    limits = max_chunks, min(max_kept, max_chunks)
    # With `jit`, each is traced once, though the passes use it several times.
    functions = jax.jit(function), jax.jit(prepare)
    return _sum_chunks(*functions, limits, num_chunks, inputs, constants)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _sum_chunks(function, prepare, limits, num_chunks, inputs, constants):
    return _forward(function, prepare, limits, num_chunks, inputs, constants)[0]


def _forward(function, prepare, limits, num_chunks, inputs, constants):
    def one_chunk(k):
        prepared = prepare(k, inputs, constants)
        return function(k, inputs, prepared, constants), prepared

    def add(k, state):
        total, kept = state
        value, prepared = one_chunk(k)
        kept = jax.tree.map(lambda x, new: x.at[k].set(new, mode='drop'), kept, prepared)
        return _add(total, value), kept

    value, prepared = jax.eval_shape(one_chunk, num_chunks)
    kept = jax.tree.map(lambda x: jnp.zeros((limits[1], *x.shape), x.dtype), prepared)
    total, kept = jax.lax.fori_loop(jnp.int32(0), num_chunks, add, (_zeros_like(value), kept))
    return total, (num_chunks, inputs, constants, kept)


def _backward(function, prepare, limits, saved, gradient):
    num_chunks, inputs, constants, kept = saved
    max_chunks, num_kept = limits

    def prepared_before(k):
        return jax.tree.map(lambda x: x[k], kept)

    def prepared_for(k):
        if max_chunks == num_kept:
            return prepared_before(k)
        return jax.lax.cond(
            k < num_kept, prepared_before, lambda k: prepare(k, inputs, constants), k
        )

    def add(k, total):
        prepared = prepared_for(k)
        _, pull_back = jax.vjp(lambda inputs: function(k, inputs, prepared, constants), inputs)
        return _add(total, *pull_back(gradient))

    return None, jax.lax.fori_loop(jnp.int32(0), num_chunks, add, _zeros_like(inputs)), None


_sum_chunks.defvjp(_forward, _backward)
