"""Corners and generalised IoU (GIoU) of boxes."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

EPSILON = 1e-6  # Added to both denominators, so that empty boxes have a finite GIoU.


def to_corners(boxes: Array) -> Array:
    """Boxes [..., 4] from cx, cy, w, h to x0, y0, x1, y1."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([centre - size / 2, centre + size / 2], axis=-1)


def _area(corners: Array) -> Array:
    return (corners[..., 2] - corners[..., 0]) * (corners[..., 3] - corners[..., 1])


def generalized_iou(a: Array, b: Array) -> Array:
    """GIoU [...] of boxes a and b [..., 4] (cx, cy, w, h), which broadcast."""
    a, b = to_corners(a), to_corners(b)
    inner_low, inner_high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    outer_low, outer_high = jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])
    intersection = jnp.prod(jnp.maximum(inner_high - inner_low, 0.0), axis=-1)
    union = _area(a) + _area(b) - intersection
    hull = jnp.prod(jnp.maximum(outer_high - outer_low, 0.0), axis=-1)
    return intersection / (union + EPSILON) - (hull - union) / (hull + EPSILON)
