"""Bilinear samples of logit maps and segment maps at the points where masks are compared.

Points are x, y in [0, 1] over the whole map; pixel i has its centre at (i + 0.5) / size. Samples
outside the map are zero.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.model.bilinear import bilinear_neighbours


def _neighbours(points: Array, shape: tuple[int, int]) -> list[tuple[Array, Array, Array]]:
    """`bilinear_neighbours` of points [..., 2]."""
    return bilinear_neighbours(points[..., 0], points[..., 1], *shape)


def _read(maps: Array, row: Array, column: Array) -> Array:
    """Pixels [..., P] of maps [..., h, w] at rows and columns [..., P].

    Reads from one flat table: with an index per batch dimension, computing the indices takes longer
    than the lookup.
    """
    height, width = maps.shape[-2:]
    start = jnp.arange(maps[..., 0, 0].size, dtype=jnp.int32).reshape(*maps.shape[:-2], 1)
    index = (start * height + row) * width + column
    return jnp.ravel(maps).at[index].get(mode='promise_in_bounds')


def sample_map(logits: Array, points: Array) -> Array:
    """Samples maps [..., h, w], each at its own points [..., P, 2]; returns [..., P]."""
    neighbours = _neighbours(points, logits.shape[-2:])
    return sum(weight * _read(logits, row, column) for row, column, weight in neighbours)


def sample_features(features: Array, points: Array) -> Array:
    """Samples a feature map [h, w, D] at points [P, 2]; returns [P, D]."""
    neighbours = _neighbours(points, features.shape[:2])
    return sum(weight[:, None] * features[row, column] for row, column, weight in neighbours)


def sample_segments(segment_map: Array, points: Array, segment: Array) -> Array:
    """Samples the binary masks of segments.

    Args:
        segment_map: [..., H, W] integer.
        points: [..., P, 2]; the leading dimensions of all arguments broadcast.
        segment: [...] integer ids.

    Returns:
        float32 [..., P] in [0, 1].
    """
    neighbours = _neighbours(points, segment_map.shape[-2:])
    segment = segment[..., None]
    return sum(weight * (_read(segment_map, *pixel) == segment) for *pixel, weight in neighbours)


def sample_slots(segment_map: Array, points: Array, num_slots: int) -> Array:
    """Samples the masks of all slots of an image at the same points.

    Args:
        segment_map: [H, W] integer; t + 1 = the segment in slot t.
        points: [P, 2].
        num_slots: T.

    Returns:
        float32 [P, T] in [0, 1].
    """
    shares = jnp.zeros((len(points), num_slots + 1), jnp.float32)
    for row, column, weight in _neighbours(points, segment_map.shape):
        shares = shares.at[jnp.arange(len(points)), segment_map[row, column]].add(weight)
    return shares[:, 1:]


def uncertain_points(
    keys: Array, logits: Array, *, num_points: int, oversample_ratio: float, importance_ratio: float
) -> Array:
    """Points [..., P, 2] where masks are most uncertain, and uniform ones (PointRend).

    Of `oversample_ratio * P` uniform candidates, the `importance_ratio * P` with the smallest
    absolute logit are kept; the remaining points are uniform.

    Args:
        keys: [...] one random key per mask.
        logits: [..., h, w] of the masks; they get no gradient.
        num_points: P.
        oversample_ratio: candidates per point.
        importance_ratio: share of the points that is chosen from the candidates.
    """
    num_uncertain = int(importance_ratio * num_points)

    def draw(key: Array) -> tuple[Array, Array]:
        candidate_key, uniform_key = jax.random.split(key)
        candidates = jax.random.uniform(candidate_key, (int(oversample_ratio * num_points), 2))
        return candidates, jax.random.uniform(uniform_key, (num_points - num_uncertain, 2))

    for _ in keys.shape:
        draw = jax.vmap(draw)
    return keep_uncertain(logits, *draw(keys), num_uncertain)


def keep_uncertain(logits: Array, candidates: Array, uniform: Array, num_uncertain: int) -> Array:
    """The most uncertain candidates, then the uniform points: [..., num_uncertain + M, 2].

    Args:
        logits: [..., h, w] of the masks; they get no gradient.
        candidates: [..., N, 2], of which those with the smallest absolute logit are kept.
        uniform: [..., M, 2].
        num_uncertain: number of candidates to keep.
    """
    certainty = jnp.abs(sample_map(jax.lax.stop_gradient(logits), candidates))
    chosen = bottom_k(certainty, num_uncertain)
    first = jnp.arange(certainty[..., 0].size, dtype=jnp.int32) * certainty.shape[-1]
    index = chosen + first.reshape(*certainty.shape[:-1], 1)
    kept = jnp.asarray(candidates).reshape(-1, 2).at[index].get(mode='promise_in_bounds')
    return jnp.concatenate([kept, uniform], axis=-2)


def bottom_k(values: Array, count: int) -> Array:
    """Indices [..., count], ascending, of the smallest of [..., N] floats >= 0; ties: lowest index.

    Finds the largest value to keep, two bits at a time. A sort, which also ranks, takes longer.
    """
    *batch, size = values.shape
    # Read as integers, the bits of non-negative floats have the same order.
    bits = jax.lax.bitcast_convert_type(values.reshape(-1, size).astype(jnp.float32), jnp.int32)

    def add_bits(i: Array, largest: Array) -> Array:
        steps = jnp.arange(1, 4, dtype=jnp.int32)[:, None, None] << (30 - 2 * i)
        # A sum that overflows is negative.
        bounds = jnp.where(largest + steps < 0, jnp.iinfo(jnp.int32).max, largest + steps)
        too_few = sum((number < count).astype(jnp.int32) for number in _count_below(bits, bounds))
        return largest + (too_few << (30 - 2 * i))

    largest = jax.lax.fori_loop(0, 16, add_bits, jnp.zeros((len(bits), 1), jnp.int32))
    below, equal = bits < largest, bits == largest
    missing = count - below.sum(axis=-1, keepdims=True)
    chosen = below | (equal & (jnp.cumsum(equal, axis=-1) <= missing))
    place = jnp.where(chosen, jnp.cumsum(chosen, axis=-1) - 1, count)
    # Every row of the result has one extra place, which takes all that is not chosen.
    place = place + (count + 1) * jnp.arange(len(bits), dtype=jnp.int32)[:, None]
    position = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), bits.shape)
    found = jnp.zeros(len(bits) * (count + 1), jnp.int32)
    found = found.at[place].set(position, mode='promise_in_bounds')
    return found.reshape(*batch, count + 1)[..., :count]


def _count_below(values: Array, bounds: Array) -> list[Array]:
    """Counts the values [M, N] below each of the bounds [K, M, 1]: K x [M, 1].

    A joint reduction is one fused loop; with separate sums, XLA would first write every comparison
    to memory.
    """
    comparisons = [(values < bound).astype(jnp.int32) for bound in bounds]
    zeros = [jnp.int32(0)] * len(comparisons)
    add = functools.partial(jax.tree.map, jnp.add)
    return [number[:, None] for number in jax.lax.reduce(comparisons, zeros, add, (1,))]
