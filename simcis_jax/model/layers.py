"""Basic layers, initialised as in PyTorch and fast on XLA's CPU backend."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import Precision

from simcis_jax.model.saved_for_backward import kept, marked
from simcis_jax.precision import HIGHEST, matmul

NORM_EPSILON = 1e-5
xavier_uniform = nn.initializers.xavier_uniform()
# PyTorch initialises query, key and value as one [3D, D] matrix: half the Xavier variance.
attention_input_init = nn.initializers.variance_scaling(0.5, 'fan_avg', 'uniform')
# PyTorch's default for linear layers: uniform in +-1/sqrt(fan_in).
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def flattened_dot_general(
    x: Array,
    kernel: Array,
    dimension_numbers: Any = None,
    precision: Precision | None = None,
    **options: Any,
) -> Array:
    """`matmul` for `nn.Dense`: [..., I] times [I, O], with the leading axes flattened.

    The gradient of the kernel then sums over a single axis; over several, XLA's CPU backend first
    writes a transposed copy, which takes longer than the product.
    """
    del dimension_numbers, options
    rows = x.reshape(-1, x.shape[-1])
    return matmul(rows, kernel, precision or HIGHEST).reshape(*x.shape[:-1], -1)


Dense = functools.partial(nn.Dense, dot_general=flattened_dot_general)


@jax.custom_vjp
def relu(x: Array) -> Array:
    """max(x, 0).

    The backward pass reads the result, which the next layer keeps anyway; that of `nn.relu` keeps
    its input as well.
    """
    return jnp.maximum(x, 0)


def _relu_forward(x):
    y = kept(relu(x))
    return y, y


def _relu_backward(y, gradient):
    return (jnp.where(y > 0, gradient, 0),)


relu.defvjp(_relu_forward, _relu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def softmax(x: Array, axes: tuple[int, ...]) -> Array:
    """Softmax over these axes together.

    The backward pass reads the result only; XLA would keep the exponentials as well.
    """
    return jax.nn.softmax(x, axes)


def _softmax_forward(x, axes):
    y = kept(softmax(x, axes))
    return y, y


def _softmax_backward(axes, y, gradient):
    return (y * (gradient - (y * gradient).sum(axes, keepdims=True)),)


softmax.defvjp(_softmax_forward, _softmax_backward)


@jax.custom_vjp
def normalize_rows(x: Array, scale: Array, bias: Array) -> Array:
    """Normalises [..., D] over D to mean 0 and variance 1, times `scale` [D], plus `bias` [D]."""
    return _normalize_rows(x, scale, bias)[0]


def _normalize_rows(x, scale, bias):
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + NORM_EPSILON)
    normal, inverse = marked((centred * inverse, inverse))
    return normal * scale + bias, (normal, inverse, scale)


def _normalize_rows_backward(saved, gradient):
    normal, inverse, scale = saved
    rows = tuple(range(gradient.ndim - 1))
    to_normal = gradient * scale
    along = (to_normal * normal).mean(axis=-1, keepdims=True)
    to_x = (to_normal - to_normal.mean(axis=-1, keepdims=True) - normal * along) * inverse
    return to_x, (gradient * normal).sum(axis=rows), gradient.sum(axis=rows)


normalize_rows.defvjp(_normalize_rows, _normalize_rows_backward)


class LayerNorm(nn.Module):
    """LayerNorm over D, computed in float32.

    The backward pass is written by hand: that of `nn.LayerNorm` takes five times as long on CPU.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., D] -> [..., D]."""
        scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
        bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
        return normalize_rows(x.astype(jnp.promote_types(x.dtype, jnp.float32)), scale, bias)


def group_norm(name: str, features: int, num_groups: int = 32) -> nn.GroupNorm:
    """GroupNorm over channels, in float32; fewer groups if there are few `features`."""
    num_groups = min(num_groups, features // 2)
    return nn.GroupNorm(
        num_groups=num_groups, epsilon=NORM_EPSILON, use_fast_variance=False, name=name
    )


class Linear(nn.Module):
    """A dense layer with PyTorch's initialisation: uniform in +-1/sqrt(fan_in)."""

    features: int
    dtype: jnp.dtype | None = None
    bias_init: nn.initializers.Initializer | None = None  # None = uniform as well.

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., I] -> [..., features]."""
        bound = x.shape[-1] ** -0.5

        def uniform(key, shape, dtype=jnp.float32):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        dense = Dense(
            self.features,
            dtype=self.dtype,
            kernel_init=uniform_fan_in,
            bias_init=self.bias_init or uniform,
            name='dense',
        )
        return dense(x)


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    features: tuple[int, ...]
    zero_last: bool = False  # Whether the last layer begins as zeros.

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., I] -> [..., features[-1]]."""
        *hidden, last = self.features
        for i, width in enumerate(hidden):
            x = relu(Linear(width, name=f'layer{i}')(x))
        if self.zero_last:
            zeros = nn.initializers.zeros
            return Dense(last, kernel_init=zeros, bias_init=zeros, name=f'layer{len(hidden)}')(x)
        return Linear(last, name=f'layer{len(hidden)}')(x)


class FeedForward(nn.Module):
    """The FFN of a transformer layer with residual sum and LayerNorm (post-norm)."""

    hidden: int
    dtype: jnp.dtype | None = None
    precision: Precision = HIGHEST

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, N, D] -> [B, N, D]."""
        settings = dict(dtype=self.dtype, precision=self.precision, kernel_init=xavier_uniform)
        rows = x.reshape(-1, x.shape[-1])  # Once, so that the result of relu is kept only once.
        y = Dense(self.hidden, **settings, name='linear1')(rows)
        y = Dense(x.shape[-1], **settings, name='linear2')(relu(y))
        return LayerNorm(name='norm')(x + y.reshape(x.shape))
