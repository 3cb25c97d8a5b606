"""Convolution; on CPU the gradient of its kernel is computed by matrix products.

XLA's CPU backend runs that gradient as a convolution whose window is the whole image, at a tenth of
the speed of a matrix product. The forward pass and the gradient of the input are fast as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

# With fewer input channels the products of a kernel of one tap, or of several, are too thin to pay.
MIN_CHANNELS_OF_ONE, MIN_CHANNELS = 16, 128

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


def kernel_gradient(
    x: Array, gradient: Array, size: Pair, strides: Pair, padding: Padding
) -> Array:
    """The gradient [*size, I, O] of a kernel: for each of its taps, one matrix product.

    Args:
        x: [B, H, W, I] the input.
        gradient: [B, h, w, O] of the output.
        size: of the kernel.
        strides: rows and columns between outputs.
        padding: zeros before and after the rows and the columns.
    """
    batch, height, width, _ = gradient.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    extent = ((height - 1) * strides[0] + 1, (width - 1) * strides[1] + 1)
    dtype = jnp.promote_types(x.dtype, jnp.float32)  # Sums of thousands of bfloat16.

    def tap(offset: Array) -> Array:
        start = (0, offset[0], offset[1], 0)
        seen = lax.dynamic_slice(x, start, (batch, *extent, x.shape[-1]))
        seen = seen[:, :: strides[0], :: strides[1]]
        return jnp.einsum('bhwi,bhwo->io', seen, gradient, preferred_element_type=dtype)

    taps = lax.map(tap, jnp.asarray(list(np.ndindex(*size))))
    return taps.reshape(*size, *taps.shape[1:])


def _convolve(x: Array, kernel: Array, strides: Pair, padding: Padding) -> Array:
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


def _forward(x, kernel, strides, padding):
    return _convolve(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, inputs, gradient):
    x, kernel = inputs
    _, pull_back = jax.vjp(lambda x: _convolve(x, kernel, strides, padding), x)
    to_kernel = kernel_gradient(x, gradient, kernel.shape[:2], strides, padding)
    return *pull_back(gradient), to_kernel.astype(kernel.dtype)


convolve_by_taps = jax.custom_vjp(_convolve, nondiff_argnums=(2, 3))
convolve_by_taps.defvjp(_forward, _backward)


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
    """`lax.conv_general_dilated` as `nn.Conv` calls it, in the way that suits the backend."""
    plain = {*lhs_dilation, *rhs_dilation, feature_group_count} == {1}
    min_channels = MIN_CHANNELS_OF_ONE if kernel.shape[:2] == (1, 1) else MIN_CHANNELS
    if jax.default_backend() != 'cpu' or not plain or x.shape[-1] < min_channels:
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
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return convolve_by_taps(x, kernel, tuple(strides), tuple(map(tuple, padding)))


Conv = functools.partial(nn.Conv, conv_general_dilated=convolve)
