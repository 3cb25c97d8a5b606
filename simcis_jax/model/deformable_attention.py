"""Multi-scale deformable attention: every query samples a few learned points of every map."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array
from jax.lax import Precision

from simcis_jax.model.deformable_sampling.gather import sample_by_gather
from simcis_jax.model.deformable_sampling.matmul import sample_by_matmul
from simcis_jax.model.deformable_sampling.pallas import sample_by_pallas
from simcis_jax.model.deformable_sampling.scan import sample_by_scan
from simcis_jax.model.layers import Dense, softmax, xavier_uniform
from simcis_jax.model.platforms import by_platform
from simcis_jax.model.saved_for_backward import marked
from simcis_jax.precision import HIGHEST

Shapes = tuple[tuple[int, int], ...]

# Compiled functions, so that all layers share one trace: tracing a kernel takes long.
IMPLEMENTATIONS = {
    name: jax.jit(sample, static_argnames='shapes')
    for name, sample in {
        'gather': sample_by_gather,
        'matmul': sample_by_matmul,
        'pallas': sample_by_pallas,  # Kernels for TPU.
        'pallas, emulated': functools.partial(sample_by_pallas, interpret=True),
        'scan': sample_by_scan,
    }.items()
}
# The fastest on each platform.
PLATFORMS = {'cpu': 'scan', 'tpu': 'pallas', 'default': 'gather'}


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
        implementation: a key of `IMPLEMENTATIONS`; 'auto' = the fastest on the platform.

    Returns:
        [B, Q, M * d].

    Raises:
        KeyError: the implementation is unknown.
    """
    names = PLATFORMS if implementation == 'auto' else {'default': implementation}
    # Intermediates are many times larger than the inputs: the backward pass recomputes them.
    sample = by_platform(
        **{
            platform: functools.partial(_sample, IMPLEMENTATIONS[name], shapes)
            for platform, name in names.items()
        }
    )
    return rearrange(sample(value, locations, weights), 'b q m d -> b q (m d)')


def _sample(implementation, shapes, value, locations, weights):
    return implementation(value, shapes=tuple(shapes), locations=locations, weights=weights)


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
    precision: Precision = HIGHEST

    @nn.compact
    def __call__(self, tokens: Array, positions: Array, references: Array, shapes: Shapes) -> Array:
        """Returns [B, S, D].

        Args:
            tokens: [B, S, D] the maps, flattened and concatenated.
            positions: [S, D] position encodings.
            references: [S, 2] reference point of each token, x, y in [0, 1].
            shapes: (h, w) of every map; S = sum of h * w.
        """
        heads, levels, points = self.num_heads, len(shapes), self.num_points
        embed_dim = tokens.shape[-1]
        dense = functools.partial(Dense, precision=self.precision)
        zeros = nn.initializers.zeros
        ring = initial_offsets(heads, levels, points).reshape(-1)

        query = tokens + positions
        offsets = dense(
            ring.size, kernel_init=zeros, bias_init=lambda *_: jnp.asarray(ring), name='offsets'
        )
        logits = dense(heads * levels * points, kernel_init=zeros, name='weights')(query)
        value = dense(embed_dim, kernel_init=xavier_uniform, name='value')
        offsets, value = marked((offsets(query), value(tokens)))
        offsets = rearrange(offsets, 'b q (m l p xy) -> b q m l p xy', m=heads, l=levels, p=points)
        logits = rearrange(logits, 'b q (m l p) -> b q m l p', m=heads, l=levels)
        weights = softmax(logits, (-2, -1))
        value = rearrange(value, 'b s (m d) -> b s m d', m=heads)
        # Offsets are in pixels of the map they sample.
        scale = np.array([(w, h) for h, w in shapes], np.float32)[:, None]  # [L, 1, xy]
        locations = references[:, None, None, None] + offsets / scale
        out = deformable_attention(value, shapes, locations, weights, self.implementation)
        return dense(embed_dim, kernel_init=xavier_uniform, name='output')(marked(out))
