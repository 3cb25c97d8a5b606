"""Masks are compared at sampled points: bilinear reads of logit maps and of segment maps.

Points are x, y in [0, 1] over the whole map, pixel centres at (i + 0.5) / n; outside reads zero.
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
    """Pixels [..., P] of maps [..., h, w], as one lookup in a flat table: with an axis of its own
    for every batch dimension, the indices of a lookup take longer to make than to use.
    """
    height, width = maps.shape[-2:]
    start = jnp.arange(maps[..., 0, 0].size, dtype=jnp.int32).reshape(*maps.shape[:-2], 1)
    index = (start * height + row) * width + column
    return jnp.ravel(maps).at[index].get(mode='promise_in_bounds')


def sample_map(logits: Array, points: Array) -> Array:
    """Reads maps [..., h, w], each at points of its own [..., P, 2]: [..., P]."""
    neighbours = _neighbours(points, logits.shape[-2:])
    return sum(weight * _read(logits, row, column) for row, column, weight in neighbours)


def sample_features(features: Array, points: Array) -> Array:
    """Reads a map of features [h, w, D] at points [P, 2]: [P, D]."""
    neighbours = _neighbours(points, features.shape[:2])
    return sum(weight[:, None] * features[row, column] for row, column, weight in neighbours)


def sample_segments(segment_map: Array, points: Array, segment: Array) -> Array:
    """Reads the binary masks of segments: the share of each point that is the segment's.

    Args:
        segment_map: [..., H, W] integer.
        points: [..., P, 2], with the same leading dimensions or ones that broadcast.
        segment: [...] integer ids.

    Returns:
        float32 [..., P].
    """
    neighbours = _neighbours(points, segment_map.shape[-2:])
    segment = segment[..., None]
    return sum(weight * (_read(segment_map, *pixel) == segment) for *pixel, weight in neighbours)


def sample_slots(segment_map: Array, points: Array, num_slots: int) -> Array:
    """Reads the masks of all slots of an image at the same points.

    Args:
        segment_map: [H, W] integer; slot t is t + 1.
        points: [P, 2].
        num_slots: how many there are, T.

    Returns:
        float32 [P, T].
    """
    shares = jnp.zeros((len(points), num_slots + 1), jnp.float32)
    for row, column, weight in _neighbours(points, segment_map.shape):
        shares = shares.at[jnp.arange(len(points)), segment_map[row, column]].add(weight)
    return shares[:, 1:]


def uncertain_points(
    keys: Array, logits: Array, *, num_points: int, oversample_ratio: float, importance_ratio: float
) -> Array:
    """Points [..., P, 2] where masks [..., h, w] are least sure, and some anywhere (PointRend).

    Of `oversample_ratio * P` uniform candidates the `importance_ratio * P` with the smallest
    absolute logit are kept; the rest of P is uniform.

    Args:
        keys: [...] a random key for every mask.
        logits: of the masks; they get no gradient.
        num_points: P.
        oversample_ratio: candidates for a point.
        importance_ratio: share of the points that is chosen among them.
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
    """The candidates [..., _, 2] nearest to the borders of masks [..., h, w], then the uniform."""
    certainty = jnp.abs(sample_map(jax.lax.stop_gradient(logits), candidates))
    chosen = bottom_k(certainty, num_uncertain)
    first = jnp.arange(certainty[..., 0].size, dtype=jnp.int32) * certainty.shape[-1]
    index = chosen + first.reshape(*certainty.shape[:-1], 1)
    kept = jnp.asarray(candidates).reshape(-1, 2).at[index].get(mode='promise_in_bounds')
    return jnp.concatenate([kept, uniform], axis=-2)


def bottom_k(values: Array, count: int) -> Array:
    """Positions [..., count], rising, of the smallest of [..., N] floats >= 0; of equal ones the
    first.

    Finds the largest of them two bits at a time: a sort that also ranks the others takes longer.
    """
    *batch, size = values.shape
    # As integers, the bits of such floats have the floats' order.
    bits = jax.lax.bitcast_convert_type(values.reshape(-1, size).astype(jnp.float32), jnp.int32)

    def add_bits(i: Array, largest: Array) -> Array:
        steps = jnp.arange(1, 4, dtype=jnp.int32)[:, None, None] << (30 - 2 * i)
        # Beyond 31 bits a sum is negative.
        bounds = jnp.where(largest + steps < 0, jnp.iinfo(jnp.int32).max, largest + steps)
        too_few = sum((number < count).astype(jnp.int32) for number in _numbers_below(bits, bounds))
        return largest + (too_few << (30 - 2 * i))

    largest = jax.lax.fori_loop(0, 16, add_bits, jnp.zeros((len(bits), 1), jnp.int32))
    below, equal = bits < largest, bits == largest
    missing = count - below.sum(axis=-1, keepdims=True)
    chosen = below | (equal & (jnp.cumsum(equal, axis=-1) <= missing))
    place = jnp.where(chosen, jnp.cumsum(chosen, axis=-1) - 1, count)
    # Every row of the result has one place more, for what is not chosen.
    place = place + (count + 1) * jnp.arange(len(bits), dtype=jnp.int32)[:, None]
    position = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), bits.shape)
    found = jnp.zeros(len(bits) * (count + 1), jnp.int32)
    found = found.at[place].set(position, mode='promise_in_bounds')
    return found.reshape(*batch, count + 1)[..., :count]


def _numbers_below(values: Array, bounds: Array) -> list[Array]:
    """How many of values [M, N] lie below each of the bounds [K, M, 1]: K x [M, 1]. One reduction
    of all comparisons is one loop; as sums, each comparison would first be written out.
    """
    comparisons = [(values < bound).astype(jnp.int32) for bound in bounds]
    zeros = [jnp.int32(0)] * len(comparisons)
    add = functools.partial(jax.tree.map, jnp.add)
    return [number[:, None] for number in jax.lax.reduce(comparisons, zeros, add, (1,))]
