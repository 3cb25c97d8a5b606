"""Convolution as matrix products where XLA's CPU backend is slow; elsewhere XLA's own.

On CPU, a 1x1 convolution runs as one matrix product, forward and backward: two to three times as
fast. For larger kernels, XLA is fast in the forward pass and the input gradient, but computes the
kernel gradient as a convolution whose window is the whole image, ten times slower than products.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax

from simcis_jax.model.layers import flattened_dot_general
from simcis_jax.model.platforms import by_platform
from simcis_jax.precision import HIGHEST, einsum

MIN_CHANNELS = 64  # With fewer input channels the matrix products are too thin to pay off.

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


def kernel_gradient(
    x: Array, gradient: Array, size: Pair, strides: Pair, padding: Padding
) -> Array:
    """The gradient [*size, I, O] of a kernel, with one matrix product per kernel row.

    Args:
        x: [B, H, W, I] the input.
        gradient: [B, h, w, O] gradient of the output.
        size: height and width of the kernel.
        strides: vertical and horizontal stride.
        padding: zeros added before and after the rows and the columns.
    """
    height, width, out_channels = gradient.shape[1:]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    columns = [
        lax.slice_in_dim(x, start, start + (width - 1) * strides[1] + 1, strides[1], axis=2)
        for start in range(size[1])
    ]
    x = jnp.concatenate(columns, axis=-1)  # The inputs that one kernel row reads.
    gradient = gradient.reshape(-1, out_channels)

    # The sum runs over a single axis, as in `flattened_dot_general`.
    def kernel_row(start: int) -> Array:
        seen = lax.slice_in_dim(x, start, start + (height - 1) * strides[0] + 1, strides[0], axis=1)
        seen = seen.reshape(len(gradient), -1)
        return einsum('no,ni->oi', gradient, seen).reshape(out_channels, size[1], -1)

    return rearrange(jnp.stack([kernel_row(y) for y in range(size[0])]), 'y o x i -> y x i o')


def _convolve(x: Array, kernel: Array, strides: Pair, padding: Padding) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        precision=HIGHEST,
    )


def _forward(x, kernel, strides, padding):
    return _convolve(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, inputs, gradient):
    x, kernel = inputs
    _, pull_back = jax.vjp(lambda x: _convolve(x, kernel, strides, padding), x)
    to_kernel = kernel_gradient(x, gradient, kernel.shape[:2], strides, padding)
    return *pull_back(gradient), to_kernel.astype(kernel.dtype)


convolve_by_rows = jax.custom_vjp(_convolve, nondiff_argnums=(2, 3))
convolve_by_rows.defvjp(_forward, _backward)


def convolve(
    x: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: str | Sequence[Pair],
    *,
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    feature_group_count: int = 1,
    **options: Any,
) -> Array:
    """`lax.conv_general_dilated` for `nn.Conv`, by the fastest route on the platform.

    Inputs are x [B, H, W, I] and kernel [*size, I, O]; the output is [B, h, w, O].
    """

    def library(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            feature_group_count=feature_group_count,
            **options,
        )

    if {*lhs_dilation, *rhs_dilation, feature_group_count} != {1}:
        return library(x, kernel)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    padding = tuple(map(tuple, padding))
    if kernel.shape[:2] == (1, 1) and padding == ((0, 0), (0, 0)):
        on_cpu = functools.partial(_multiply_pixels, strides=tuple(strides))
    elif x.shape[-1] >= MIN_CHANNELS:
        on_cpu = functools.partial(convolve_by_rows, strides=tuple(strides), padding=padding)
    else:
        return library(x, kernel)
    return by_platform(cpu=on_cpu, default=library)(x, kernel)


def _multiply_pixels(x: Array, kernel: Array, strides: Pair) -> Array:
    """A 1x1 convolution."""
    return flattened_dot_general(x[:, :: strides[0], :: strides[1]], kernel[0, 0])


Conv = functools.partial(nn.Conv, conv_general_dilated=convolve, precision=HIGHEST)
