"""Loops over the points of a query, so that no array larger than the output is written.

The backward pass is written by hand. Fast on CPU.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from simcis_jax.model.bilinear import bilinear_neighbours

# Images and heads are grouped up to this many elements of `value`: 1 MiB of float32, which stays in
# the caches of a CPU.
CACHED_NUMBERS = 2**18


def _weighted_neighbours(
    x: Array, y: Array, weight: Array, size: Array, start: Array
) -> tuple[list[Array], list[Array]]:
    """The four pixels around a point of every query, as rows of a table of all pixels.

    Args:
        x, y: [N, Q] in units of the map.
        weight: [N, Q] attention weight of the point.
        size: [2] height and width of the map.
        start: [N, 1] first row of the map in the table.

    Returns:
        Four products of attention weight and bilinear weight [N, Q], and four row numbers [N, Q].
    """
    height, width = size
    neighbours = bilinear_neighbours(x, y, height, width)
    shares = [share * weight for _, _, share in neighbours]
    return shares, [start + row * width + column for row, column, _ in neighbours]


def _read(table: Array, rows: Array) -> Array:
    return table.at[rows].get(mode='promise_in_bounds')


@jax.custom_vjp
def _scan_points(table: Array, points: tuple, sizes: Array, starts: Array) -> Array:
    """Loops over K points, summing weighted samples of a table [R, d]; returns [N, Q, d].

    `points` are x, y and weight, each [K, N, Q].
    """

    def add(total, inputs):
        point, size, start = inputs
        pairs = zip(*_weighted_neighbours(*point, size, start), strict=True)
        return total + sum(share[..., None] * _read(table, row) for share, row in pairs), None

    total = jnp.zeros((*points[0].shape[1:], table.shape[-1]), jnp.result_type(table, points[2]))
    return jax.lax.scan(add, total, (points, sizes, starts))[0]


def _scan_points_forward(*inputs):
    return _scan_points(*inputs), inputs


def _scan_points_backward(inputs, gradient):
    table, points, sizes, starts = inputs

    def add(to_table, inputs):
        point, size, start = inputs
        shares, pull_back, rows = jax.vjp(
            lambda *point: _weighted_neighbours(*point, size, start), *point, has_aux=True
        )
        to_shares = _sums([_read(table, row) * gradient for row in rows])
        for share, row in zip(shares, rows, strict=True):
            to_table = to_table.at[row].add(share[..., None] * gradient, mode='promise_in_bounds')
        return to_table, pull_back(to_shares)

    to_table = jnp.zeros(table.shape, gradient.dtype)
    to_table, to_points = jax.lax.scan(add, to_table, (points, sizes, starts))
    return to_table.astype(table.dtype), to_points, None, None


_scan_points.defvjp(_scan_points_forward, _scan_points_backward)


def _sums(products: list[Array]) -> list[Array]:
    """Sums each array over its last axis, all in one fused loop.

    With separate sums, XLA would first write every product to memory.
    """
    zeros = [jnp.zeros((), product.dtype) for product in products]
    axis = products[0].ndim - 1
    return list(jax.lax.reduce(products, zeros, functools.partial(jax.tree.map, jnp.add), (axis,)))


def sample_by_scan(
    value: Array, shapes: tuple[tuple[int, int], ...], locations: Array, weights: Array
) -> Array:
    """See `deformable_attention`; returns [B, Q, M, d]."""
    batch, num_positions, heads, head_dim = value.shape
    points = locations.shape[-2]
    sizes = np.repeat(np.array(shapes, np.int32), points, axis=0)  # [L * P, 2]
    ends = np.cumsum([height * width for height, width in shapes])
    starts = np.repeat([0, *ends[:-1]], points)
    # Group as many images and heads as fit the caches; the positions of a group form one table.
    count = _largest_divisor(batch * heads, at_most=CACHED_NUMBERS // (num_positions * head_dim))
    starts = starts[:, None] + num_positions * np.arange(count)
    sizes, starts = jnp.asarray(sizes), jnp.asarray(starts[..., None], jnp.int32)

    def in_groups(x: Array) -> Array:
        x = rearrange(x, 'b q m l p -> (b m) (l p) q')
        return rearrange(x, '(g n) k q -> g k n q', n=count)

    table = rearrange(value, 'b s m d -> (b m) s d')
    out = jax.lax.map(
        lambda group: _scan_points(*group, sizes, starts),
        (
            rearrange(table, '(g n) s d -> g (n s) d', n=count),
            tuple(map(in_groups, (locations[..., 0], locations[..., 1], weights))),
        ),
    )
    out = rearrange(out, 'g n q d -> (g n) q d')
    return rearrange(out, '(b m) q d -> b q m d', b=batch)


def _largest_divisor(number: int, at_most: int) -> int:
    return max(n for n in range(1, number + 1) if number % n == 0 and n <= max(at_most, 1))
