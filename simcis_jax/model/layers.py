"""The small layers that everything else is made of."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

NORM_EPSILON = 1e-5
xavier_uniform = nn.initializers.xavier_uniform()
# Queries, keys and values were one [3D, D] matrix when their range was set: half the variance.
attention_input_init = nn.initializers.variance_scaling(0.5, 'fan_avg', 'uniform')
# PyTorch's default for linear layers: uniform in +-1/sqrt(fan_in).
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def layer_norm(name: str) -> nn.LayerNorm:
    """LayerNorm over D, computed in float32."""
    return nn.LayerNorm(epsilon=NORM_EPSILON, use_fast_variance=False, name=name)


def group_norm(name: str, features: int, num_groups: int = 32) -> nn.GroupNorm:
    """GroupNorm over channels, computed in float32; narrow layers get fewer groups."""
    num_groups = min(num_groups, features // 2)
    return nn.GroupNorm(
        num_groups=num_groups, epsilon=NORM_EPSILON, use_fast_variance=False, name=name
    )


class Linear(nn.Module):
    """A dense layer whose weight and bias start uniform in +-1/sqrt(fan_in)."""

    features: int
    dtype: jnp.dtype | None = None
    bias_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., I] -> [..., features]."""
        bound = x.shape[-1] ** -0.5

        def uniform(key, shape, dtype=jnp.float32):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        dense = nn.Dense(
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
    zero_last: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., I] -> [..., features[-1]]."""
        *hidden, last = self.features
        for i, width in enumerate(hidden):
            x = nn.relu(Linear(width, name=f'layer{i}')(x))
        if self.zero_last:
            zeros = nn.initializers.zeros
            return nn.Dense(last, kernel_init=zeros, bias_init=zeros, name=f'layer{len(hidden)}')(x)
        return Linear(last, name=f'layer{len(hidden)}')(x)


class FeedForward(nn.Module):
    """The residual FFN of a transformer layer, normalised after the sum."""

    hidden: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, N, D] -> [B, N, D]."""
        y = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=xavier_uniform, name='linear1')(x)
        y = nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=xavier_uniform, name='linear2')(
            nn.relu(y)
        )
        return layer_norm('norm')(x + y)


class Attention(nn.Module):
    """Multi-head attention with its residual and norm; `allowed` may differ for every query."""

    num_heads: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self, x: Array, query: Array, key: Array, value: Array, allowed: Array | None = None
    ) -> Array:
        """Returns norm(x + attention(query, key, value)) [B, N, D].

        Args:
            x: [B, N, D] the residual stream.
            query: [B, N, D], x with its positions.
            key: [B, S, D], value: [B, S, D].
            allowed: [B, N, S] bool, keys a query may attend to; None = all.
        """
        width = x.shape[-1]

        def heads(name, inputs):
            y = nn.Dense(width, dtype=self.dtype, kernel_init=attention_input_init, name=name)(
                inputs
            )
            return rearrange(y, 'b n (m d) -> b n m d', m=self.num_heads)

        q, k, v = heads('query', query), heads('key', key), heads('value', value)
        logits = jnp.einsum('bnmd,bsmd->bmns', q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
        if allowed is not None:
            logits = jnp.where(allowed[:, None], logits, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        y = rearrange(jnp.einsum('bmns,bsmd->bnmd', weights, v), 'b n m d -> b n (m d)')
        y = nn.Dense(width, dtype=self.dtype, kernel_init=xavier_uniform, name='output')(y)
        return layer_norm('norm')(x + y)
