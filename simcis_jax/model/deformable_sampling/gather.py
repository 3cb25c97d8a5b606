"""Reads the four neighbours of all points at once. Fast on GPU, where XLA fuses the reads."""

from __future__ import annotations

import jax
import numpy as np
from einops import rearrange
from jax import Array

from simcis_jax.model.bilinear import bilinear_neighbours
from simcis_jax.precision import einsum


def sample_by_gather(
    value: Array, shapes: tuple[tuple[int, int], ...], locations: Array, weights: Array
) -> Array:
    """See `deformable_attention`; returns [B, Q, M, d]."""
    height, width = np.array(shapes, np.int32).T
    start = np.concatenate([[0], np.cumsum(height * width)[:-1]]).astype(np.int32)
    # [L, 1] against the trailing [L, P] of locations.
    height, width, start = height[:, None], width[:, None], start[:, None]
    rows = rearrange(value, 'b s m d -> b m s d')
    take = jax.vmap(jax.vmap(lambda table, index: table[index]))

    def read(row: Array, column: Array, share: Array) -> Array:
        share = rearrange(share * weights, 'b q m l p -> b m q (l p)')
        index = rearrange(start + row * width + column, 'b q m l p -> b m q (l p)')
        return einsum('bmqp,bmqpd->bqmd', share, take(rows, index))

    neighbours = bilinear_neighbours(locations[..., 0], locations[..., 1], height, width)
    return sum(read(*neighbour) for neighbour in neighbours)
