"""Multi-scale deformable attention: every query reads a few learned points of every map.

One function with two ways to compute it. `gather` reads the four neighbours of each point: its cost
grows with the number of points. `matmul` writes bilinear interpolation as a product of hat
functions and turns the whole layer into dense matrix products: its cost grows with queries times
positions, but neither it nor its gradient gathers or scatters anything.
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

# Up to this many positions in all maps `matmul` is the faster one (2-core CPU, forward + backward).
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


IMPLEMENTATIONS = {'gather': sample_by_gather, 'matmul': sample_by_matmul}


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
        implementation: 'gather', 'matmul', or 'auto' for what measured best.

    Returns:
        [B, Q, M * d].
    """
    if implementation == 'auto':
        implementation = 'matmul' if value.shape[1] <= MATMUL_MAX_POSITIONS else 'gather'
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
