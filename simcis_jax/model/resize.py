"""Bilinear resizing as matrix products, so that image sizes may be traced."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from simcis_jax.precision import einsum


def bilinear_matrix(
    num_out: int,
    num_in: int,
    *,
    size_out: Array | int | None = None,
    size_in: Array | int | None = None,
) -> Array:
    """The matrix [num_out, num_in] that resizes one axis bilinearly.

    Pixel centres lie at (i + 0.5) / size and edges are repeated, as with PyTorch's `interpolate`
    and `align_corners=False`, without antialiasing. Only the first `size_in` inputs are read and
    only the first `size_out` outputs are valid. Both may be traced: one compiled function serves
    images of every size that fits the padding. The product of two matrices resizes twice.
    """
    size_out = num_out if size_out is None else size_out
    size_in = num_in if size_in is None else size_in
    source = (jnp.arange(num_out) + 0.5) * (size_in / size_out) - 0.5
    source = jnp.clip(source, 0.0, jnp.asarray(size_in, jnp.float32) - 1.0)
    return jnp.maximum(0.0, 1.0 - jnp.abs(source[:, None] - jnp.arange(num_in)))


def crop_and_resize(
    shape: tuple[int, int], padded: tuple[int, int], *, size: Array, original_size: Array
) -> tuple[Array, Array]:
    """The matrices that resize rows and columns of a padded input to the original image.

    Args:
        shape: of the result; at least `original_size`.
        padded: of the padded input.
        size: [2] height and width of the image inside the padded input; may be traced.
        original_size: [2] height and width of the original image; may be traced.
    """
    rows, columns = (
        bilinear_matrix(num_out, num_in, size_out=original_size[axis], size_in=size[axis])
        for axis, (num_out, num_in) in enumerate(zip(shape, padded, strict=True))
    )
    return rows, columns


def resize(maps: Array, shape: tuple[int, int]) -> Array:
    """Resizes [..., h, w] to [..., *shape] bilinearly (see `bilinear_matrix`)."""
    rows = bilinear_matrix(shape[0], maps.shape[-2])
    columns = bilinear_matrix(shape[1], maps.shape[-1])
    return einsum('yh,...hw,xw->...yx', rows, maps, columns)


def resize_features(maps: Array, shape: tuple[int, int]) -> Array:
    """Resizes [..., h, w, D] to [..., *shape, D] bilinearly, without a transposed copy."""
    rows = bilinear_matrix(shape[0], maps.shape[-3])
    columns = bilinear_matrix(shape[1], maps.shape[-2])
    maps = einsum('yh,...hwd->...ywd', rows, maps)
    return einsum('xw,...ywd->...yxd', columns, maps)
