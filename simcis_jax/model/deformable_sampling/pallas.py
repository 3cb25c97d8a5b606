"""Pallas kernels for TPU that turn sampling into small matrix products.

A TPU has no fast gather, but a fast matrix unit. For a tile of queries and a few rows of a map, a
kernel writes the share that each query takes of each pixel as a matrix [pixels, queries], most of
it zeros, and multiplies the pixels by it. Neighbouring queries read the same few rows; all others
are skipped.

Shapes: each map is n groups of g rows, and each row is padded to w pixels. A tile has T queries,
which lie along the lanes of the vector unit, with P points each.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from simcis_jax.precision import HIGHEST

Shapes = tuple[tuple[int, int], ...]

LANES, SUBLANES = 128, 8  # Of a vector register; the matrix unit has as many columns as lanes.


def sample_by_pallas(
    value: Array, shapes: Shapes, locations: Array, weights: Array, *, interpret: bool = False
) -> Array:
    """See `deformable_attention`; returns [B, Q, M, d].

    With `interpret`, the kernels are emulated, on any platform. Products of float32 values are
    exact to float32; those of bfloat16 values have shares in bfloat16, too.
    """
    sizes = jnp.asarray([(width, height) for height, width in shapes], jnp.float32)[:, None]
    places = rearrange(locations * sizes - 0.5, 'b q m l p xy -> b m xy (l p) q')
    weights = rearrange(weights, 'b q m l p -> b m 1 (l p) q')
    points = jnp.concatenate([places, weights], axis=2).astype(jnp.float32)
    ends = list(itertools.accumulate((height * width for height, width in shapes), initial=0))
    maps = tuple(
        _group_rows(rearrange(value[:, start:end], 'b (h w) m d -> b h w m d', w=width))
        for (_, width), (start, end) in zip(shapes, itertools.pairwise(ends), strict=True)
    )
    out = _sample(tuple(shapes), interpret, maps, points)
    return rearrange(out.astype(jnp.result_type(value, weights)), 'b m d q -> b q m d')


def _round_up(number: int, multiple: int) -> int:
    return number + -number % multiple


def _rows_per_group(width: int) -> int:
    """As many rows as fit the columns of the matrix unit."""
    return max(1, LANES // _round_up(width, SUBLANES))


def _group_rows(pixels: Array) -> Array:
    """[B, H, W, M, d] -> [B, M, n, d, g * w], padded with zeros."""
    height, width = pixels.shape[1:3]
    group = _rows_per_group(width)
    missing = (0, -height % group), (0, -width % SUBLANES)
    pixels = jnp.pad(pixels, ((0, 0), *missing, (0, 0), (0, 0)))
    return rearrange(pixels, 'b (n g) w m d -> b m n d (g w)', g=group)


def groups_read(shapes: Shapes, y: Array) -> Array:
    """The groups of rows that the queries of a tile read: from the first up to before the last.

    Args:
        shapes: (h, w) of L maps.
        y: [..., L * P, Q] rows of the points, in pixels of their map; Q is a multiple of T.

    Returns:
        [..., Q / T, 2 * L] int32, first and last of each map; first >= last if no group is read.
    """
    heights = jnp.asarray([height for height, _ in shapes])[:, None]
    group = jnp.asarray([_rows_per_group(width) for _, width in shapes])[:, None]
    tiles = rearrange(y, '... (l p) (n t) -> ... l p n t', l=len(shapes), t=LANES)
    tiles = jnp.where(jnp.isnan(tiles), 0, tiles)  # So that the result is not a number, either.
    is_inside = (tiles > -1) & (tiles < heights[..., None, None])
    # Of the points, not of their groups: the compiler takes more than twice as long for those.
    top = jnp.where(is_inside, tiles, jnp.inf).min(axis=(-3, -1))
    bottom = jnp.where(is_inside, tiles, -jnp.inf).max(axis=(-3, -1))
    first = jnp.clip(jnp.floor(top), 0, heights).astype(jnp.int32) // group
    last = jnp.clip(jnp.floor(bottom) + 1, 0, heights - 1).astype(jnp.int32) // group + 1
    bounds = jnp.where((top > bottom)[..., None], 0, jnp.stack([first, last], axis=-1))
    return rearrange(bounds, '... l n two -> ... n (l two)')


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sample(shapes: Shapes, interpret: bool, maps: tuple[Array, ...], points: Array) -> Array:
    """Samples L maps [B, M, n, d, g * w]; returns [B, M, d, Q].

    `points` [B, M, 3, L * P, Q] are x and y, in pixels of their map, and attention weights.
    """
    return _forward(shapes, interpret, maps, points)[0]


def _pad_queries(x: Array, mode: str) -> Array:
    """[..., Q] with Q a multiple of T."""
    padding = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % LANES)]
    return jnp.pad(x, padding, mode=mode)


def _forward(shapes, interpret, maps, points):
    num_queries = points.shape[-1]
    points = _pad_queries(points, 'edge')  # The last query again, which reads no other rows.
    groups = groups_read(shapes, points[:, :, 1])
    batch, heads, _, dim, _ = maps[0].shape
    out = jax.ShapeDtypeStruct((batch, heads, dim, points.shape[-1]), jnp.float32)
    (out,) = _call(_forward_kernel, shapes, interpret, groups, (points,), maps, (out,), ())
    return out[..., :num_queries], (groups, maps, points)


def _backward(shapes, interpret, saved, gradient):
    groups, maps, points = saved
    num_queries, gradient = gradient.shape[-1], _pad_queries(gradient, 'constant')
    like_points, *like_maps = (jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (points, *maps))
    to_points, *to_maps = _call(
        _backward_kernel,
        shapes,
        interpret,
        groups,
        (points, gradient),
        maps,
        (like_points,),
        like_maps,
    )
    to_maps = tuple(to.astype(x.dtype) for to, x in zip(to_maps, maps, strict=True))
    return to_maps, to_points[..., :num_queries]


_sample.defvjp(_forward, _backward)


def _call(
    kernel: Callable,
    shapes: Shapes,
    interpret: bool,
    groups: Array,
    tiled: Sequence[Array],
    maps: Sequence[Array],
    tiled_out: Sequence[jax.ShapeDtypeStruct],
    maps_out: Sequence[jax.ShapeDtypeStruct],
) -> list[Array]:
    """Calls `kernel(widths, groups, *tiled, *maps, *tiled_out, *maps_out)` for each tile.

    Maps are those of the image and head of the tile; they stay in memory from tile to tile.
    """

    def whole(x):
        zeros = (0,) * (len(x.shape) - 2)
        return pl.BlockSpec((None, None, *x.shape[2:]), lambda b, m, n: (b, m, *zeros))

    def tile(x):
        zeros = (0,) * (len(x.shape) - 3)
        return pl.BlockSpec((None, None, *x.shape[2:-1], LANES), lambda b, m, n: (b, m, *zeros, n))

    scalars = pl.BlockSpec(
        (None, None, None, 1, groups.shape[-1]),
        lambda b, m, n: (b, m, n, 0, 0),
        memory_space=pltpu.SMEM,
    )
    map_bytes = sum(
        4 * math.prod(x.shape[2:-1]) * _round_up(x.shape[-1], LANES) for x in (*maps, *maps_out)
    )
    return pl.pallas_call(
        functools.partial(kernel, [_round_up(width, SUBLANES) for _, width in shapes]),
        grid=groups.shape[:3],
        in_specs=[scalars, *map(tile, tiled), *map(whole, maps)],
        out_specs=[*map(tile, tiled_out), *map(whole, maps_out)],
        out_shape=[*tiled_out, *maps_out],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=('parallel', 'parallel', 'arbitrary'),
            # The next maps are loaded while the present ones are used.
            vmem_limit_bytes=2 * map_bytes + 2**23,
        ),
        interpret=interpret,
        name=kernel.__name__.strip('_'),
    )(groups[..., None, :], *tiled, *maps)


# Kernels


def _hat(distance: Array) -> Array:
    """Bilinear weight of a pixel at this distance along one axis."""
    return jnp.maximum(0.0, 1.0 - jnp.abs(distance))


def _slope(distance: Array) -> Array:
    """The derivative of `_hat`; where it jumps, that on the right."""
    rising, falling = (distance >= -1) & (distance < 0), (distance >= 0) & (distance < 1)
    return rising.astype(jnp.float32) - falling.astype(jnp.float32)


def _to_columns(x: Array, width: int) -> Array:
    """Distances [P, w, T] of points x [P, 1, T] to the columns of a map."""
    return x - jax.lax.broadcasted_iota(jnp.int32, (width, LANES), 0).astype(jnp.float32)


def _to_rows(y: Array, group: Array, num_rows: int) -> Array:
    """Distances [g, P, 1, T] of points y [P, 1, T] to the rows of a group."""
    return jnp.stack([y - (group * num_rows + i).astype(jnp.float32) for i in range(num_rows)])


def _shares(down: Array, across: Array) -> Array:
    """Shares [g * w, T] of pixels, from weights [g, P, 1, T] of rows and [P, w, T] of columns."""
    return (down * across).sum(axis=1).reshape(-1, LANES)


def _product(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    """Product of two matrices that sums over these axes, in float32."""
    return jax.lax.dot_general(
        a,
        b,
        (((a_axis,), (b_axis,)), ((), ())),
        precision=HIGHEST if a.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def _of_level(level: int, num_levels: int, groups, points) -> tuple[Array, Array, Array, tuple]:
    """x, y, weight [P, 1, T] of the points on one map, and its first and last group to read."""
    num_points = points.shape[1] // num_levels
    rows = range(level * num_points, (level + 1) * num_points)
    x, y, weight = (jnp.stack([points[i, pl.ds(row, 1)] for row in rows]) for i in range(3))
    return x, y, weight, (groups[0, 2 * level], groups[0, 2 * level + 1])


def _forward_kernel(widths, groups, points, *refs):
    *maps, out = refs

    def sample(level: int) -> Array:  # [d, T] from one map.
        pixels, width = maps[level], widths[level]
        x, y, weight, bounds = _of_level(level, len(maps), groups, points)
        across, num_rows = weight * _hat(_to_columns(x, width)), pixels.shape[-1] // width

        def add(n, total):
            shares = _shares(_hat(_to_rows(y, n, num_rows)), across)
            return total + _product(pixels[n], shares.astype(pixels.dtype), 1, 0)

        return jax.lax.fori_loop(*bounds, add, jnp.zeros(out.shape, jnp.float32))

    out[...] = sum(map(sample, range(len(maps))))


def _backward_kernel(widths, groups, points, gradient, *refs):
    maps, to_points, to_maps = refs[: len(widths)], refs[len(widths)], refs[len(widths) + 1 :]
    gradient = gradient[...].astype(maps[0].dtype)

    def pull_back(level: int) -> None:
        pixels, to_pixels, width = maps[level], to_maps[level], widths[level]
        x, y, weight, bounds = _of_level(level, len(maps), groups, points)
        distance, num_rows = _to_columns(x, width), pixels.shape[-1] // width
        across, across_slope = _hat(distance), _slope(distance)

        @pl.when(pl.program_id(2) == 0)
        def _():
            to_pixels[...] = jnp.zeros_like(to_pixels)

        def add(n, sums):
            distance = _to_rows(y, n, num_rows)
            down, down_slope = _hat(distance), _slope(distance)
            shares = _shares(weight * down, across).astype(gradient.dtype)
            to_pixels[n] += _product(gradient, shares, 1, 1)
            to_shares = _product(pixels[n], gradient, 0, 0).reshape(num_rows, 1, width, LANES)
            to_down = (to_shares * across).sum(axis=2, keepdims=True)
            along_x = (to_shares * across_slope).sum(axis=2, keepdims=True)
            terms = down * along_x, down_slope * to_down, down * to_down
            return tuple(s + term.sum(axis=0) for s, term in zip(sums, terms, strict=True))

        zeros = jnp.zeros(x.shape, jnp.float32)
        to_x, to_y, to_weight = jax.lax.fori_loop(*bounds, add, (zeros, zeros, zeros))
        for i, to in enumerate((weight * to_x, weight * to_y, to_weight)):
            for point, row in enumerate(to):
                to_points[i, pl.ds(level * len(x) + point, 1)] = row

    for level in range(len(maps)):
        pull_back(level)
