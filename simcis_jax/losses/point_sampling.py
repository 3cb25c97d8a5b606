"""Bilinear samples of logit maps and segment maps at the points where masks are compared.

Points are x, y in [0, 1] over the whole map; pixel i has its centre at (i + 0.5) / size. Samples
outside the map are zero. On TPUs, which have no fast gather, kernels read the pixels.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.losses import point_kernels
from simcis_jax.losses.threshold_search import bottom_k, smallest
from simcis_jax.model.bilinear import bilinear_neighbours
from simcis_jax.model.platforms import by_platform


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


def sample_by_gather(maps: Array, points: Array) -> Array:
    """`sample_map` by four lookups per point."""
    neighbours = _neighbours(points, maps.shape[-2:])
    return sum(weight * _read(maps, row, column) for row, column, weight in neighbours)


_sample_map = by_platform(default=sample_by_gather, tpu=point_kernels.sample)


def sample_map(logits: Array, points: Array) -> Array:
    """Samples maps [..., h, w], each at its own points [..., P, 2]; returns [..., P].

    Points get no gradient.
    """
    return _sample_map(logits, jax.lax.stop_gradient(points))


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
    return jax.lax.platform_dependent(
        segment_map,
        points,
        segment,
        default=segments_by_gather,
        tpu=point_kernels.sample_segments,
    )


def segments_by_gather(segment_map: Array, points: Array, segment: Array) -> Array:
    """`sample_segments` by four lookups per point."""
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
    return jax.lax.platform_dependent(
        segment_map,
        points,
        default=functools.partial(slots_by_gather, num_slots=num_slots),
        tpu=functools.partial(point_kernels.sample_slots, num_slots=num_slots),
    )


def slots_by_gather(segment_map: Array, points: Array, num_slots: int) -> Array:
    """`sample_slots` by four lookups and four additions to single numbers per point."""
    shares = jnp.zeros((len(points), num_slots + 1), jnp.float32)
    for row, column, weight in _neighbours(points, segment_map.shape):
        shares = shares.at[jnp.arange(len(points)), segment_map[row, column]].add(weight)
    return shares[:, 1:]


def uncertain_points(
    keys: Array,
    maps: Array,
    *,
    num_points: int,
    oversample_ratio: float,
    importance_ratio: float,
    centre: float = 0.0,
) -> Array:
    """Points [..., P, 2] where masks are most uncertain, and uniform ones (PointRend).

    Of `oversample_ratio * P` uniform candidates, the `importance_ratio * P` whose values are
    nearest to `centre` are kept; the remaining points are uniform.

    Args:
        keys: [...] one random key per mask.
        maps: [..., h, w] logits of the masks, or probabilities; they get no gradient.
        num_points: P.
        oversample_ratio: candidates per point.
        importance_ratio: share of the points that is chosen from the candidates.
        centre: the value at which a mask is most uncertain.
    """
    num_uncertain = int(importance_ratio * num_points)

    def draw(key: Array) -> tuple[Array, Array]:
        candidate_key, uniform_key = jax.random.split(key)
        candidates = jax.random.uniform(candidate_key, (int(oversample_ratio * num_points), 2))
        return candidates, jax.random.uniform(uniform_key, (num_points - num_uncertain, 2))

    for _ in keys.shape:
        draw = jax.vmap(draw)
    return keep_uncertain(maps, *draw(keys), num_uncertain, centre)


def keep_uncertain(
    maps: Array, candidates: Array, uniform: Array, num_uncertain: int, centre: float = 0.0
) -> Array:
    """The most uncertain candidates, then the uniform points: [..., num_uncertain + M, 2].

    Args:
        maps: [..., h, w] logits of the masks, or probabilities; they get no gradient.
        candidates: [..., N, 2], of which those whose values are nearest to `centre` are kept.
        uniform: [..., M, 2].
        num_uncertain: number of candidates to keep.
        centre: the value at which a mask is most uncertain.
    """
    certainty = jnp.abs(sample_map(jax.lax.stop_gradient(maps), candidates) - centre)
    kept = jax.lax.platform_dependent(
        certainty,
        jnp.asarray(candidates),
        default=functools.partial(_keep_by_gather, count=num_uncertain),
        tpu=functools.partial(_keep_by_kernel, count=num_uncertain),
    )
    return jnp.concatenate([kept, uniform], axis=-2)


def _keep_by_gather(certainty: Array, candidates: Array, count: int) -> Array:
    """The candidates [..., count, 2] of [..., N, 2] with the smallest certainty [..., N]."""
    first = jnp.arange(certainty[..., 0].size, dtype=jnp.int32) * certainty.shape[-1]
    index = bottom_k(certainty, count) + first.reshape(*certainty.shape[:-1], 1)
    return candidates.reshape(-1, 2).at[index].get(mode='promise_in_bounds')


def _keep_by_kernel(certainty: Array, candidates: Array, count: int) -> Array:
    """`_keep_by_gather`, without gathers and scatters."""
    xy = [candidates[..., 0], candidates[..., 1]]
    return jnp.stack(point_kernels.compact(smallest(certainty, count), xy, count), axis=-1)
