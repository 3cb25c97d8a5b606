"""Multi-scale deformable attention: every query reads a few learned points of every map.

One function with three ways to compute it. `gather` reads the four neighbours of all points at
once. `scan` reads one point of every query after the other, so that nothing larger than the output
is ever written; its gradient is written out. `matmul` writes bilinear interpolation as a product of
hat functions and turns the whole layer into dense matrix products: its cost grows with queries
times positions, but neither it nor its gradient gathers or scatters anything.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from simcis_jax.model.layers import xavier_uniform

Shapes = tuple[tuple[int, int], ...]

# On accelerators, up to this many positions in all maps `matmul` is taken, beyond it `gather`.
MATMUL_MAX_POSITIONS = 1024


def sample_by_gather(value: Array, shapes: Shapes, locations: Array, weights: Array) -> Array:
    """See `deformable_attention`."""
    height, width = np.array(shapes, np.int32).T
    start = np.concatenate([[0], np.cumsum(height * width)[:-1]]).astype(np.int32)
    # [L, 1] against the trailing [L, P] of locations.
    height, width, start = height[:, None], width[:, None], start[:, None]
    x = locations[..., 0] * width - 0.5
    y = locations[..., 1] * height - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    rows = rearrange(value, 'b s m d -> b m s d')
    take = jax.vmap(jax.vmap(lambda table, index: table[index]))

    def corner(dx: int, dy: int) -> Array:
        column, row = left.astype(jnp.int32) + dx, top.astype(jnp.int32) + dy
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        share = (1 - jnp.abs(x - (left + dx))) * (1 - jnp.abs(y - (top + dy)))
        share = rearrange(jnp.where(inside, share * weights, 0.0), 'b q m l p -> b m q (l p)')
        index = start + jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
        picked = take(rows, rearrange(index, 'b q m l p -> b m q (l p)'))
        return jnp.einsum('bmqp,bmqpd->bqmd', share, picked)

    return corner(0, 0) + corner(1, 0) + corner(0, 1) + corner(1, 1)


def _neighbours(point: Array, weight: Array, size: Array, start: Array) -> tuple[Array, Array]:
    """The four positions around a point of every query: where they are, and their shares.

    Args:
        point: [2, N, Q] x, y in units of the map.
        weight: [N, Q] of the point.
        size: [2] height and width of the map.
        start: [N, 1] where the map begins in the table of all positions of row n.

    Returns:
        Rows of the table [4, N, Q], and the weighted bilinear share of each, zero outside the map.
    """
    height, width = size
    x, y = point[0] * width - 0.5, point[1] * height - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    rows, shares = [], []
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = left.astype(jnp.int32) + dx, top.astype(jnp.int32) + dy
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        share = (1 - jnp.abs(x - (left + dx))) * (1 - jnp.abs(y - (top + dy)))
        shares.append(jnp.where(inside, share * weight, 0.0))
        rows.append(start + jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1))
    return jnp.stack(rows), jnp.stack(shares)


def _read(table: Array, rows: Array) -> Array:
    return table.at[rows].get(mode='promise_in_bounds')


@jax.custom_vjp
def _scan_points(table: Array, points: Array, weights: Array, sizes: Array, starts: Array) -> Array:
    """Reads points one after the other: a table [R, d] at points [K, 2, N, Q], to [N, Q, d]."""

    def add(total, point):
        rows, shares = _neighbours(*point)
        pairs = zip(rows, shares, strict=True)
        return total + sum(share[..., None] * _read(table, row) for row, share in pairs), None

    dtype = jnp.result_type(table, weights)
    total = jnp.zeros((*weights.shape[1:], table.shape[-1]), dtype)
    return jax.lax.scan(add, total, (points, weights, sizes, starts))[0]


def _scan_points_forward(*inputs):
    return _scan_points(*inputs), inputs


def _scan_points_backward(inputs, gradient):
    table, points, weights, sizes, starts = inputs

    def add(to_table, inputs):
        point, weight, size, start = inputs
        shares, pull_back, rows = jax.vjp(
            lambda *x: _neighbours(*x, size, start)[::-1], point, weight, has_aux=True
        )
        to_shares = jnp.einsum('cnqd,nqd->cnq', _read(table, rows), gradient)
        for row, share in zip(rows, shares, strict=True):
            to_table = to_table.at[row].add(share[..., None] * gradient, mode='promise_in_bounds')
        return to_table, pull_back(to_shares)

    to_table = jnp.zeros(table.shape, gradient.dtype)
    to_table, (to_points, to_weights) = jax.lax.scan(
        add, to_table, (points, weights, sizes, starts)
    )
    return to_table.astype(table.dtype), to_points, to_weights, None, None


_scan_points.defvjp(_scan_points_forward, _scan_points_backward)


def sample_by_scan(value: Array, shapes: Shapes, locations: Array, weights: Array) -> Array:
    """See `deformable_attention`."""
    batch, num_positions, heads, _ = value.shape
    points = locations.shape[-2]
    sizes = np.repeat(np.array(shapes, np.int32), points, axis=0)  # [L * P, 2]
    ends = np.cumsum([height * width for height, width in shapes])
    starts = np.repeat([0, *ends[:-1]], points)
    # One table of the positions of all images and heads.
    starts = starts[:, None] + num_positions * np.arange(batch * heads)
    out = _scan_points(
        rearrange(value, 'b s m d -> (b m s) d'),
        rearrange(locations, 'b q m l p xy -> (l p) xy (b m) q'),
        rearrange(weights, 'b q m l p -> (l p) (b m) q'),
        jnp.asarray(sizes),
        jnp.asarray(starts[..., None], jnp.int32),
    )
    return rearrange(out, '(b m) q d -> b q m d', b=batch)


def sample_by_matmul(value: Array, shapes: Shapes, locations: Array, weights: Array) -> Array:
    """See `deformable_attention`."""
    attention = []
    for level, (height, width) in enumerate(shapes):
        x = locations[..., level, :, 0] * width - 0.5
        y = locations[..., level, :, 1] * height - 0.5
        # A bilinear weight is the product of two hats; positions outside the map have none.
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
    """Weighted sum of bilinear samples; points outside a map read zero.

    Args:
        value: [B, S, M, d], the maps flattened one after the other, M heads.
        shapes: (h, w) of every map; S = sum of h * w.
        locations: [B, Q, M, L, P, 2] x, y in units of the map's width and height: 0 and 1 are the
            outer edges of the map.
        weights: [B, Q, M, L, P].
        implementation: 'gather', 'scan', 'matmul', or 'auto': on CPU 'scan', which measured best
            at every size there, elsewhere 'matmul' on small maps and 'gather' on large ones.

    Returns:
        [B, Q, M * d].
    """
    if implementation == 'auto':
        elsewhere = 'matmul' if value.shape[1] <= MATMUL_MAX_POSITIONS else 'gather'
        implementation = 'scan' if jax.default_backend() == 'cpu' else elsewhere
    sample = IMPLEMENTATIONS[implementation]
    # The intermediates are many times larger than the inputs: recompute them for the gradient.
    sample = jax.checkpoint(functools.partial(sample, shapes=shapes))
    return rearrange(
        sample(value=value, locations=locations, weights=weights), 'b q m d -> b q (m d)'
    )


def ring_bias(num_heads: int, num_levels: int, num_points: int) -> np.ndarray:
    """Initial offsets [M, L, P, 2]: head m looks in direction m, point p at distance p + 1."""
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
            query: [B, Q, D] tokens with their positions.
            value: [B, S, D] tokens.
            references: [Q, 2] x, y in [0, 1] around which each query looks.
            shapes: (h, w) of every map.
        """
        heads, levels, points = self.num_heads, len(shapes), self.num_points
        width = value.shape[-1]
        zeros = nn.initializers.zeros
        ring = ring_bias(heads, levels, points).reshape(-1)
        offsets = nn.Dense(
            ring.size, kernel_init=zeros, bias_init=lambda *_: jnp.asarray(ring), name='offsets'
        )(query)
        offsets = rearrange(offsets, 'b q (m l p xy) -> b q m l p xy', m=heads, l=levels, p=points)
        logits = nn.Dense(heads * levels * points, kernel_init=zeros, name='weights')(query)
        weights = jax.nn.softmax(rearrange(logits, 'b q (m lp) -> b q m lp', m=heads), axis=-1)
        weights = rearrange(weights, 'b q m (l p) -> b q m l p', l=levels)
        value = nn.Dense(width, kernel_init=xavier_uniform, name='value')(value)
        value = rearrange(value, 'b s (m d) -> b s m d', m=heads)
        # Offsets are in pixels of the map they sample.
        scale = np.array([(w, h) for h, w in shapes], np.float32)[:, None]  # [L, 1, xy]
        locations = references[:, None, None, None] + offsets / scale
        out = deformable_attention(value, shapes, locations, weights, self.implementation)
        return nn.Dense(width, kernel_init=xavier_uniform, name='output')(out)
