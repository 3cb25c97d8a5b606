"""Multi-scale deformable attention: every query samples a few learned points of every map.

There are three implementations. `gather` reads the four neighbours of all points at once. `scan`
loops over the points of a query, so that no array larger than the output is written; its backward
pass is written by hand. `matmul` expresses bilinear interpolation as a product of hat functions,
so that the layer consists of dense matrix products: its cost grows with queries times positions,
but neither the forward nor the backward pass needs gathers or scatters.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from simcis_jax.model.bilinear import bilinear_neighbours
from simcis_jax.model.layers import Dense, xavier_uniform

Shapes = tuple[tuple[int, int], ...]

# `scan` groups images and heads up to this many elements of `value`: 1 MiB of float32, which stays
# in the caches of a CPU.
CACHED_NUMBERS = 2**18

# On accelerators, `auto` chooses `matmul` up to this many positions in all maps, else `gather`.
MATMUL_MAX_POSITIONS = 1024


def sample_by_gather(value: Array, shapes: Shapes, locations: Array, weights: Array) -> Array:
    """See `deformable_attention`."""
    height, width = np.array(shapes, np.int32).T
    start = np.concatenate([[0], np.cumsum(height * width)[:-1]]).astype(np.int32)
    # [L, 1] against the trailing [L, P] of locations.
    height, width, start = height[:, None], width[:, None], start[:, None]
    rows = rearrange(value, 'b s m d -> b m s d')
    take = jax.vmap(jax.vmap(lambda table, index: table[index]))

    def read(row: Array, column: Array, share: Array) -> Array:
        share = rearrange(share * weights, 'b q m l p -> b m q (l p)')
        index = rearrange(start + row * width + column, 'b q m l p -> b m q (l p)')
        return jnp.einsum('bmqp,bmqpd->bqmd', share, take(rows, index))

    neighbours = bilinear_neighbours(locations[..., 0], locations[..., 1], height, width)
    return sum(read(*neighbour) for neighbour in neighbours)


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


def sample_by_scan(value: Array, shapes: Shapes, locations: Array, weights: Array) -> Array:
    """See `deformable_attention`."""
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


def sample_by_matmul(value: Array, shapes: Shapes, locations: Array, weights: Array) -> Array:
    """See `deformable_attention`."""
    attention = []
    for level, (height, width) in enumerate(shapes):
        x = locations[..., level, :, 0] * width - 0.5
        y = locations[..., level, :, 1] * height - 0.5
        # A bilinear weight is the product of two hat functions; outside the map it is zero.
        columns = jnp.maximum(0.0, 1.0 - jnp.abs(x[..., None] - jnp.arange(width)))
        rows = jnp.maximum(0.0, 1.0 - jnp.abs(y[..., None] - jnp.arange(height)))
        rows = rows * weights[..., level, :, None]
        pixels = jnp.einsum('bqmpy,bqmpx->bmqyx', rows, columns)
        attention.append(rearrange(pixels, 'b m q y x -> b m q (y x)'))
    return jnp.einsum('bmqs,bsmd->bqmd', jnp.concatenate(attention, axis=-1), value)


IMPLEMENTATIONS = {
    'gather': sample_by_gather,
    'scan': sample_by_scan,
    'matmul': sample_by_matmul,
}


def deformable_attention(
    value: Array, shapes: Shapes, locations: Array, weights: Array, implementation: str = 'auto'
) -> Array:
    """Weighted sum of bilinear samples of several maps; outside a map they are zero.

    Args:
        value: [B, S, M, d] the maps, flattened and concatenated, for M heads.
        shapes: (h, w) of every map; S = sum of h * w.
        locations: [B, Q, M, L, P, 2] x, y of P points on each of L maps, in units of the map's
            width and height: 0 and 1 are the outer edges of the map.
        weights: [B, Q, M, L, P] attention weights.
        implementation: 'gather', 'scan', 'matmul', or 'auto': 'scan' on CPU, where it is the
            fastest at every measured size; elsewhere 'matmul' for small maps, 'gather' for large.

    Returns:
        [B, Q, M * d].

    Raises:
        KeyError: the implementation is unknown.
    """
    if implementation == 'auto':
        elsewhere = 'matmul' if value.shape[1] <= MATMUL_MAX_POSITIONS else 'gather'
        implementation = 'scan' if jax.default_backend() == 'cpu' else elsewhere
    sample = IMPLEMENTATIONS[implementation]
    # The intermediates are many times larger than the inputs: the backward pass recomputes them.
    sample = jax.checkpoint(functools.partial(sample, shapes=shapes))
    return rearrange(
        sample(value=value, locations=locations, weights=weights), 'b q m d -> b q (m d)'
    )


def initial_offsets(num_heads: int, num_levels: int, num_points: int) -> np.ndarray:
    """Initial offsets [M, L, P, 2] in pixels: head m in direction m, point p at distance p + 1."""
    angle = np.arange(num_heads) * (2 * np.pi / num_heads)
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    direction /= np.abs(direction).max(axis=-1, keepdims=True)
    distance = np.arange(1, num_points + 1)[:, None]
    rings = direction[:, None, None, :] * distance
    return np.broadcast_to(rings, (num_heads, num_levels, num_points, 2)).astype(np.float32)


class DeformableAttention(nn.Module):
    """Deformable self-attention over the positions of several maps."""

    num_heads: int = 8
    num_points: int = 4
    implementation: str = 'auto'

    @nn.compact
    def __call__(self, query: Array, value: Array, references: Array, shapes: Shapes) -> Array:
        """Returns [B, Q, D].

        Args:
            query: [B, Q, D] tokens plus their position encodings.
            value: [B, S, D] tokens.
            references: [Q, 2] reference point of each query, x, y in [0, 1].
            shapes: (h, w) of every map.
        """
        heads, levels, points = self.num_heads, len(shapes), self.num_points
        embed_dim = value.shape[-1]
        zeros = nn.initializers.zeros
        ring = initial_offsets(heads, levels, points).reshape(-1)
        offsets = Dense(
            ring.size, kernel_init=zeros, bias_init=lambda *_: jnp.asarray(ring), name='offsets'
        )(query)
        offsets = rearrange(offsets, 'b q (m l p xy) -> b q m l p xy', m=heads, l=levels, p=points)
        logits = Dense(heads * levels * points, kernel_init=zeros, name='weights')(query)
        weights = jax.nn.softmax(rearrange(logits, 'b q (m lp) -> b q m lp', m=heads), axis=-1)
        weights = rearrange(weights, 'b q m (l p) -> b q m l p', l=levels)
        value = Dense(embed_dim, kernel_init=xavier_uniform, name='value')(value)
        value = rearrange(value, 'b s (m d) -> b s m d', m=heads)
        # Offsets are in pixels of the map they sample.
        scale = np.array([(w, h) for h, w in shapes], np.float32)[:, None]  # [L, 1, xy]
        locations = references[:, None, None, None] + offsets / scale
        out = deformable_attention(value, shapes, locations, weights, self.implementation)
        return Dense(embed_dim, kernel_init=xavier_uniform, name='output')(out)
