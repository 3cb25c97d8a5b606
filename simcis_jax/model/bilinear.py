"""Bilinear interpolation at points: the four pixels around each and their weights."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def bilinear_neighbours(
    x: Array, y: Array, height: int | Array, width: int | Array
) -> list[tuple[Array, Array, Array]]:
    """The four pixels around each point of a map, with their bilinear weights.

    Pixel i has its centre at (i + 0.5) / size and pixels outside the map count as zero: what
    PyTorch's `grid_sample` calls `align_corners=False` and `padding_mode='zeros'`.

    Args:
        x, y: [...] float, in units of the map's width and height: 0 and 1 are its outer edges.
        height, width: of the map in pixels; integers, or arrays that broadcast to [...].

    Returns:
        Four tuples (row, column, weight), each [...]: int32 indices, clipped to the map, and the
        weight of that pixel, 0 where it lies outside the map.
    """
    x, y = x * width - 0.5, y * height - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    neighbours = []
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = left.astype(jnp.int32) + dx, top.astype(jnp.int32) + dy
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        weight = (1 - jnp.abs(x - (left + dx))) * (1 - jnp.abs(y - (top + dy)))
        weight = jnp.where(inside, weight, 0.0)
        neighbours.append((jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1), weight))
    return neighbours
