"""Bilinear interpolation as a product of hat functions, so that sampling is dense matrix products.

The cost grows with queries times positions, but neither the forward nor the backward pass needs
gathers or scatters, so that results are the same in every run on a GPU, too.
"""

from __future__ import annotations

import jax.numpy as jnp
from einops import rearrange
from jax import Array

from simcis_jax.precision import einsum


def sample_by_matmul(
    value: Array, shapes: tuple[tuple[int, int], ...], locations: Array, weights: Array
) -> Array:
    """See `deformable_attention`; returns [B, Q, M, d]."""
    attention = []
    for level, (height, width) in enumerate(shapes):
        x = locations[..., level, :, 0] * width - 0.5
        y = locations[..., level, :, 1] * height - 0.5
        # A bilinear weight is the product of two hat functions; outside the map it is zero.
        columns = jnp.maximum(0.0, 1.0 - jnp.abs(x[..., None] - jnp.arange(width)))
        rows = jnp.maximum(0.0, 1.0 - jnp.abs(y[..., None] - jnp.arange(height)))
        rows = rows * weights[..., level, :, None]
        pixels = einsum('bqmpy,bqmpx->bmqyx', rows, columns)
        attention.append(rearrange(pixels, 'b m q y x -> b m q (y x)'))
    return einsum('bmqs,bsmd->bqmd', jnp.concatenate(attention, axis=-1), value)
