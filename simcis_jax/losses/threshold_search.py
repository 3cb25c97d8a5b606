"""Selects the k smallest of many numbers by a search for the largest of them.

This is faster than sorting, because the k numbers need no order.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array


def smallest(values: Array, count: int) -> Array:
    """Marks the `count` smallest of [..., N] floats >= 0; of equal ones, the first.

    A compiler may compute the values once for the search and again, rounded in another way, for the
    choice. The choice therefore reads numbers that the loop of the search returns: these exist only
    once, so that exactly `count` are marked.

    Returns:
        bool [..., N].
    """
    remainders = _search(values.reshape(-1, values.shape[-1]), count)
    below, equal = remainders < 0, remainders == 0
    missing = count - below.sum(axis=-1, keepdims=True)
    chosen = below | (equal & (jnp.cumsum(equal, axis=-1) <= missing))
    return chosen.reshape(values.shape)


def bottom_k(values: Array, count: int) -> Array:
    """Indices [..., count], ascending, of the smallest of [..., N] floats >= 0; see `smallest`."""
    *batch, size = values.shape
    chosen = smallest(values, count).reshape(-1, size)
    place = jnp.where(chosen, jnp.cumsum(chosen, axis=-1) - 1, count)
    # Every row of the result has one extra place, which takes all that is not chosen.
    place = place + (count + 1) * jnp.arange(len(chosen), dtype=jnp.int32)[:, None]
    position = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), chosen.shape)
    found = jnp.zeros(len(chosen) * (count + 1), jnp.int32)
    found = found.at[place].set(position, mode='promise_in_bounds')
    return found.reshape(*batch, count + 1)[..., :count]


def _search(values: Array, count: int) -> Array:
    """The bits of values [M, N] less those of the largest value to keep in their row, int32.

    As integers, the bits of non-negative floats have the same order. The largest value is found two
    bits at a time and subtracted eight bits at a time.
    """
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32)

    def subtract_byte(byte: Array, bits: Array) -> Array:
        def add_bits(i: Array, largest: Array) -> Array:
            shift = 30 - 8 * byte - 2 * i
            steps = jnp.arange(1, 4, dtype=jnp.int32)[:, None, None] << shift
            # A sum that overflows is negative.
            bounds = jnp.where(largest + steps < 0, jnp.iinfo(jnp.int32).max, largest + steps)
            numbers = _count_below(bits, bounds)
            return largest + (sum((n < count).astype(jnp.int32) for n in numbers) << shift)

        return bits - jax.lax.fori_loop(0, 4, add_bits, jnp.zeros((len(bits), 1), jnp.int32))

    return jax.lax.fori_loop(0, 4, subtract_byte, bits)


def _count_below(values: Array, bounds: Array) -> list[Array]:
    """Counts the values [M, N] below each of the bounds [K, M, 1]: K x [M, 1].

    A joint reduction is one fused loop; with separate sums, XLA would first write every comparison
    to memory.
    """
    comparisons = [(values < bound).astype(jnp.int32) for bound in bounds]
    zeros = [jnp.int32(0)] * len(comparisons)
    add = functools.partial(jax.tree.map, jnp.add)
    return [number[:, None] for number in jax.lax.reduce(comparisons, zeros, add, (1,))]
