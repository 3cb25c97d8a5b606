"""Sine encodings of pixel positions and boxes, and the inverse sigmoid that refines boxes."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array


def _sine(values: Array, dim: int) -> Array:
    """Encodes [...] radians as [..., dim]: sine and cosine interleaved, growing wavelengths."""
    wavelength = 10000.0 ** (2 * (np.arange(dim) // 2) / dim)
    angles = values[..., None] / wavelength.astype(np.float32)
    pairs = jnp.stack([jnp.sin(angles[..., 0::2]), jnp.cos(angles[..., 1::2])], axis=-1)
    return rearrange(pairs, '... k two -> ... (k two)')


def encode_grid(shape: tuple[int, int], dim: int) -> Array:
    """Encodes the positions of a map as [h, w, dim]: y in the first half, x in the second."""
    height, width = shape
    y = (jnp.arange(height) + 1) / (height + 1e-6) * (2 * np.pi)
    x = (jnp.arange(width) + 1) / (width + 1e-6) * (2 * np.pi)
    y = jnp.broadcast_to(_sine(y, dim // 2)[:, None], (height, width, dim // 2))
    x = jnp.broadcast_to(_sine(x, dim // 2)[None], (height, width, dim // 2))
    return jnp.concatenate([y, x], axis=-1)


def encode_boxes(boxes: Array, dim: int) -> Array:
    """Encodes boxes [..., 4] (cx, cy, w, h) as [..., 4 * dim], in the order y, x, w, h."""
    cx, cy, w, h = jnp.moveaxis(boxes * (2 * np.pi), -1, 0)
    return jnp.concatenate([_sine(v, dim) for v in (cy, cx, w, h)], axis=-1)


def inverse_sigmoid(x: Array, floor: float = 1e-5) -> Array:
    """The logit of x [...] clamped to [0, 1]; finite, because x and 1 - x are floored."""
    x = jnp.clip(x, 0.0, 1.0)
    return jnp.log(jnp.maximum(x, floor) / jnp.maximum(1.0 - x, floor))
