"""Pallas kernels for TPU that read, write and compact single numbers without gathers or scatters.

A TPU looks up single numbers in one vector register: 128 columns of a row of a map. A kernel looks
every point up in all rows and keeps what it finds in the row of the point. The transposed operation
is a matrix product, see `spread`.

A tile is one vector register, 8 x 128 points. The kernels take one map after the other, with all of
its points.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from simcis_jax.model.bilinear import bilinear_neighbours
from simcis_jax.precision import HIGHEST

LANES, SUBLANES = 128, 8  # Of a vector register.
LANE_BITS = 7
ROWS_PER_WORD = 31  # Of a mask, see `sample_segments`.


def sample(maps: Array, points: Array, *, interpret: bool = False) -> Array:
    """Samples float32 maps [..., h, w], each at its own points [..., P, 2]; returns [..., P].

    Points get no gradient. With `interpret`, the kernels are emulated, on any platform.
    """
    return _sample(maps.shape[-2:], interpret, maps, jax.lax.stop_gradient(points))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sample(shape: tuple[int, int], interpret: bool, maps: Array, points: Array) -> Array:
    neighbours = bilinear_neighbours(points[..., 0], points[..., 1], *shape)
    (top, left, _), *_, (bottom, right, _) = neighbours
    pixels = read(maps, (top, bottom), (left, right), interpret=interpret)
    return sum(weight * pixel for (*_, weight), pixel in zip(neighbours, pixels, strict=True))


def _sample_forward(shape, interpret, maps, points):
    return _sample(shape, interpret, maps, points), points


def _sample_backward(shape, interpret, points, gradient):
    return spread(gradient, points, shape, interpret=interpret), jnp.zeros_like(points)


_sample.defvjp(_sample_forward, _sample_backward)


def sample_segments(
    segment_map: Array, points: Array, segment: Array, *, interpret: bool = False
) -> Array:
    """See `point_sampling.sample_segments`.

    31 rows of a mask are packed into the bits of one row of integers, with the next row in the last
    bit, so that a point finds its four pixels in two integers.
    """
    masks = segment_map == segment[..., None, None]
    *batch, height, width = masks.shape
    shared = jnp.broadcast_shapes(masks.shape[:-2], points.shape[:-2])
    groups = -(-height // ROWS_PER_WORD)
    missing = groups * ROWS_PER_WORD + 1 - height
    masks = jnp.pad(masks, ((0, 0),) * len(batch) + ((0, missing), (0, 0))).astype(jnp.uint32)
    grouped = masks[..., :-1, :].reshape(*batch, groups, ROWS_PER_WORD, width)
    bits = jnp.arange(ROWS_PER_WORD, dtype=jnp.uint32)[:, None]
    words = (grouped << bits).sum(axis=-2, dtype=jnp.uint32)
    words |= masks[..., ROWS_PER_WORD::ROWS_PER_WORD, :] << ROWS_PER_WORD
    words = jax.lax.bitcast_convert_type(words, jnp.int32)
    words = jnp.broadcast_to(words, (*shared, *words.shape[-2:]))

    points = jnp.broadcast_to(points, (*shared, *points.shape[-2:]))
    neighbours = bilinear_neighbours(points[..., 0], points[..., 1], height, width)
    (top, left, _), *_, (_, right, _) = neighbours
    group = top // ROWS_PER_WORD
    words = read(words, (group,), (left, right), interpret=interpret) * 2
    return sum(
        weight * ((word >> (row - group * ROWS_PER_WORD)) & 1)
        for (row, _, weight), word in zip(neighbours, words, strict=True)
    )


def sample_slots(
    segment_map: Array, points: Array, num_slots: int, *, interpret: bool = False
) -> Array:
    """See `point_sampling.sample_slots`."""
    neighbours = bilinear_neighbours(points[:, 0], points[:, 1], *segment_map.shape)
    (top, left, _), *_, (bottom, right, _) = neighbours
    segment_map = segment_map.astype(jnp.int32)
    ids = read(segment_map, (top, bottom), (left, right), interpret=interpret)
    slots = jnp.arange(1, num_slots + 1)
    return sum(
        weight[:, None] * (number[:, None] == slots)
        for (*_, weight), number in zip(neighbours, ids, strict=True)
    )


@functools.partial(jax.jit, static_argnames='interpret')
def read(
    maps: Array, rows: Sequence[Array], columns: Sequence[Array], *, interpret: bool = False
) -> list[Array]:
    """Reads pixels of maps [..., h, w] of 32-bit numbers.

    Returns:
        Arrays [..., P]: for each of the rows [..., P], the pixels in each of the columns [..., P].
    """
    *batch, height, width = maps.shape
    num_points = rows[0].shape[-1]
    padding = (0, -height % SUBLANES), (0, -width % LANES)
    maps = jnp.pad(maps, ((0, 0),) * len(batch) + padding)
    maps = maps.reshape(math.prod(batch), -1, SUBLANES, maps.shape[-1])
    inputs = maps, *map(_in_rows, (*rows, *columns))
    like = jax.ShapeDtypeStruct(inputs[1].shape, maps.dtype)
    kernel = functools.partial(_read_kernel, len(rows), len(columns))
    pixels = _call('read', kernel, interpret, inputs, [like] * (len(rows) * len(columns)))
    return [x.reshape(*batch, -1)[..., :num_points] for x in pixels]


@functools.partial(jax.jit, static_argnames=('shape', 'interpret'))
def spread(
    values: Array, points: Array, shape: tuple[int, int], *, interpret: bool = False
) -> Array:
    """The transpose of `sample`: adds values [..., P] to the pixels around points [..., P, 2].

    Each point adds the product of two hat functions; all points together are a matrix product.

    Args:
        values: of the points.
        points: x, y in [0, 1].
        shape: height and width of the maps.

    Returns:
        float32 maps [..., h, w].
    """
    height, width = shape
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    inputs = list(map(_in_rows, (x, y, values)))
    padded = height + -height % SUBLANES, width + -width % LANES
    like = jax.ShapeDtypeStruct((len(inputs[0]), *padded), jnp.float32)
    (maps,) = _call('spread', _spread_kernel, interpret, inputs, [like])
    return maps[:, :height, :width].reshape(*values.shape[:-1], height, width)


@functools.partial(jax.jit, static_argnames=('count', 'interpret'))
def compact(
    chosen: Array, arrays: Sequence[Array], count: int, *, interpret: bool = False
) -> list[Array]:
    """The chosen entries of arrays, in their order.

    Every entry moves forward past those that are not chosen, by one power of two after the other.

    Args:
        chosen: [..., N] bool, of which `count` are True.
        arrays: each [..., N] of 32-bit numbers.
        count: number of chosen entries.

    Returns:
        Arrays [..., count].
    """
    distance = jnp.arange(1, chosen.shape[-1] + 1) - jnp.cumsum(chosen, axis=-1)
    distance = jnp.where(chosen, distance, 0).astype(jnp.int32)
    inputs = list(map(_in_rows, (distance, *arrays)))
    like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs[1:]]
    found = _call('compact', _compact_kernel, interpret, inputs, like)
    return [x.reshape(*chosen.shape[:-1], -1)[..., :count] for x in found]


def _in_rows(points: Array) -> Array:
    """Points [..., P] in rows [N, R, 128], padded with zeros to whole tiles."""
    points = points.reshape(-1, points.shape[-1])
    points = jnp.pad(points, ((0, 0), (0, -points.shape[-1] % (SUBLANES * LANES))))
    return points.reshape(len(points), -1, LANES)


def _call(
    name: str,
    kernel: Callable,
    interpret: bool,
    inputs: Sequence[Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
) -> list[Array]:
    """Calls a kernel for every map, with its part of all inputs and outputs in fast memory."""

    def whole(x):
        return pl.BlockSpec((None, *x.shape[1:]), lambda n: (n, *(0,) * (len(x.shape) - 1)))

    def num_bytes(x):
        rows = math.prod(x.shape[1:-2]) * (x.shape[-2] + -x.shape[-2] % SUBLANES)
        return 4 * rows * x.shape[-1]

    return pl.pallas_call(
        kernel,
        grid=(len(inputs[0]),),
        in_specs=[whole(x) for x in inputs],
        out_specs=[whole(x) for x in outputs],
        out_shape=list(outputs),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=('parallel',),
            # The next map is loaded while the present one is used.
            vmem_limit_bytes=2 * sum(map(num_bytes, (*inputs, *outputs))) + 2**23,
        ),
        interpret=interpret,
        name=name,
    )(*inputs)


# Kernels


def _read_kernel(num_rows, num_columns, pixels, *refs):
    rows, columns = refs[:num_rows], refs[num_rows : num_rows + num_columns]
    found = refs[num_rows + num_columns :]

    def look_up(line: Array, column: Array) -> Array:
        """The numbers of a line [1, w] in columns [8, 128]."""
        value = jnp.zeros(column.shape, line.dtype)
        for chunk in range(line.shape[-1] // LANES):
            lanes = line[:, chunk * LANES : (chunk + 1) * LANES]
            lanes = jnp.broadcast_to(lanes, column.shape)
            here = jnp.take_along_axis(lanes, column & LANES - 1, 1, mode='promise_in_bounds')
            value = jnp.where(column >> LANE_BITS == chunk, here, value)
        return value

    def read_tile(n, _):
        tile = pl.ds(pl.multiple_of(n * SUBLANES, SUBLANES), SUBLANES)
        row, column = [x[tile] for x in rows], [x[tile] for x in columns]

        def read_group(group, values):
            def read_line(i, values):
                line = pixels[group, pl.ds(i, 1), :]
                numbers = [look_up(line, x) for x in column]
                new = [(x == group * SUBLANES + i, number) for x in row for number in numbers]
                return [jnp.where(*pair, v) for pair, v in zip(new, values, strict=True)]

            return jax.lax.fori_loop(0, SUBLANES, read_line, values, unroll=True)

        zeros = [jnp.zeros((SUBLANES, LANES), x.dtype) for x in found]
        values = jax.lax.fori_loop(0, pixels.shape[0], read_group, zeros)
        for ref, value in zip(found, values, strict=True):
            ref[tile] = value

    jax.lax.fori_loop(0, rows[0].shape[0] // SUBLANES, read_tile, None)


def _spread_kernel(x, y, values, maps):
    def hat(position: Array, size: int) -> Array:
        """Bilinear weights [size, 128] of pixels along one axis, of points [1, 128]."""
        pixel = jax.lax.broadcasted_iota(jnp.int32, (size, LANES), 0).astype(jnp.float32)
        return jnp.maximum(0.0, 1.0 - jnp.abs(position - pixel))

    maps[...] = jnp.zeros_like(maps)

    def add(n, _):
        row = pl.ds(n, 1)
        down, across = values[row] * hat(y[row], maps.shape[0]), hat(x[row], maps.shape[1])
        maps[...] += jax.lax.dot_general(
            down,
            across,
            (((1,), (1,)), ((), ())),
            precision=HIGHEST,
            preferred_element_type=jnp.float32,
        )

    jax.lax.fori_loop(0, x.shape[0], add, None)


def _compact_kernel(distance, *refs):
    arrays, compacted = refs[: len(refs) // 2], refs[len(refs) // 2 :]
    num_rows = distance.shape[0]
    lane = jax.lax.broadcasted_iota(jnp.int32, distance.shape, 1)

    def ahead_in_row(x: Array, step: Array) -> Array:
        x = pltpu.roll(x, LANES - step, 1)
        return jnp.where(lane < LANES - step, x, pltpu.roll(x, num_rows - 1, 0))

    def ahead_by_rows(x: Array, step: Array) -> Array:
        return pltpu.roll(x, num_rows - (step >> LANE_BITS), 0)

    def move(ahead, bit, state):
        distance, *arrays = state
        step = jnp.int32(1) << bit
        coming = ahead(distance, step)
        arrives, leaves = coming & step != 0, distance & step != 0
        distance = jnp.where(arrives, coming, jnp.where(leaves, 0, distance))
        return distance, *(jnp.where(arrives, ahead(x, step), x) for x in arrays)

    state = distance[...], *(x[...] for x in arrays)
    state = jax.lax.fori_loop(0, LANE_BITS, functools.partial(move, ahead_in_row), state)
    num_bits = (distance.size - 1).bit_length()
    state = jax.lax.fori_loop(LANE_BITS, num_bits, functools.partial(move, ahead_by_rows), state)
    for ref, x in zip(compacted, state[1:], strict=True):
        ref[...] = x
