"""Masks are compared at sampled points: bilinear reads of logit maps and of segment maps.

Points are x, y in [0, 1] over the whole map, pixel centres at (i + 0.5) / n; outside reads zero.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def _corners(points: Array, shape: tuple[int, int]) -> list[tuple[Array, Array, Array]]:
    """The four neighbours of points [.., 2]: row, column and weight, each [..]; zero outside."""
    height, width = shape
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    corners = []
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = (top + dy).astype(jnp.int32), (left + dx).astype(jnp.int32)
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            weight = (1 - jnp.abs(y - (top + dy))) * (1 - jnp.abs(x - (left + dx)))
            weight = jnp.where(inside, weight, 0.0)
            corners.append((jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1), weight))
    return corners


def sample_map(logits: Array, points: Array) -> Array:
    """Reads one map [h, w] at points [P, 2]: [P]."""
    return sum(
        weight * logits[row, column] for row, column, weight in _corners(points, logits.shape)
    )


def sample_maps(logits: Array, points: Array) -> Array:
    """Reads N maps [N, h, w] at the same points [P, 2]: [N, P]."""
    last = jnp.moveaxis(logits, 0, -1)  # Neighbouring maps in memory: one read serves all.
    corners = _corners(points, logits.shape[1:])
    return sum(weight[:, None] * last[row, column] for row, column, weight in corners).T


def sample_segments(segment_map: Array, points: Array, segments: Array) -> Array:
    """Reads the binary masks of segments at points: the share of each point that is theirs.

    Args:
        segment_map: [H, W] integer.
        points: [P, 2].
        segments: integer ids, broadcastable against [P]: [] for one mask, [T, 1] for many.

    Returns:
        float32, the broadcast shape of `segments` and [P].
    """
    corners = _corners(points, segment_map.shape)
    return sum(weight * (segment_map[row, column] == segments) for row, column, weight in corners)


def uncertain_points(
    key: Array, logits: Array, *, num_points: int, oversample_ratio: float, importance_ratio: float
) -> Array:
    """Points [P, 2] where a mask [h, w] is least sure, and some anywhere (PointRend).

    Of `oversample_ratio * P` uniform candidates the `importance_ratio * P` with the smallest
    absolute logit are kept; the rest of P is uniform.
    """
    num_uncertain = int(importance_ratio * num_points)
    candidate_key, uniform_key = jax.random.split(key)
    candidates = jax.random.uniform(candidate_key, (int(oversample_ratio * num_points), 2))
    uniform = jax.random.uniform(uniform_key, (num_points - num_uncertain, 2))
    return keep_uncertain(logits, candidates, uniform, num_uncertain)


def keep_uncertain(logits: Array, candidates: Array, uniform: Array, num_uncertain: int) -> Array:
    """The candidates [_, 2] nearest to the border of a mask [h, w], then the uniform points."""
    certainty = jnp.abs(sample_map(jax.lax.stop_gradient(logits), candidates))
    return jnp.concatenate([candidates[smallest(certainty, num_uncertain)], uniform])


def smallest(values: Array, count: int) -> Array:
    """Positions [count], rising, of the smallest of [N] floats >= 0; of equal ones the first.

    Finds the largest of them bit by bit: a sort that also ranks the others takes longer.
    """
    # As integers, the bits of such floats have the floats' order.
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32)

    def add_bit(i: Array, largest: Array) -> Array:
        more = largest | jax.lax.shift_left(1, 30 - i)
        return jnp.where(jnp.sum(bits < more) < count, more, largest)

    largest = jax.lax.fori_loop(0, 31, add_bit, jnp.int32(0))
    below, equal = bits < largest, bits == largest
    chosen = below | (equal & (jnp.cumsum(equal) <= count - jnp.sum(below)))
    places = jnp.where(chosen, jnp.cumsum(chosen) - 1, count)  # Out of range: dropped.
    positions = jnp.arange(len(values), dtype=jnp.int32)
    return jnp.zeros(count, jnp.int32).at[places].set(positions, mode='drop')
