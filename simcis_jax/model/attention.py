"""Multi-head attention with an optional mask for every query."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from simcis_jax.model.layers import Dense, LayerNorm, attention_input_init, xavier_uniform
from simcis_jax.model.saved_for_backward import computed_again, kept
from simcis_jax.precision import einsum


@jax.custom_vjp
def attend(
    query: Array,
    key: Array,
    value: Array,
    allowed: Array | None = None,
    bias: Array | None = None,
) -> Array:
    """Softmax attention, returns [B, M, N, d]; the softmax is computed in float32.

    The backward pass is written by hand: the gradient of the softmax needs a sum over the S keys,
    which equals a sum of `gradient * out` over d (FlashAttention, section 3.1). On CPU, XLA takes
    twenty times as long for the sum over keys.

    Args:
        query: [B, M, N, d] of M heads, already scaled.
        key: [B, M, S, d], value: [B, M, S, d].
        allowed: [B, N, S] bool, the keys each query may attend to, at least one; None = all.
        bias: [M, N, S] added to the logits of all B; None = 0.
    """
    return _attend(query, key, value, allowed, bias)[0]


def _attend(query, key, value, allowed, bias):
    logits = einsum('bmnd,bmsd->bmns', query, key)
    if bias is not None:
        logits += bias
    if allowed is not None:
        logits = jnp.where(allowed[:, None], logits, -jnp.inf)
    weights = kept(jax.nn.softmax(logits, axis=-1).astype(value.dtype))
    out = einsum('bmns,bmsd->bmnd', weights, value)
    return out.astype(value.dtype), (query, key, value, weights, out, bias)


def _attend_backward(saved, gradient):
    saved, gradient = computed_again((saved, gradient))
    query, key, value, weights, out, bias = saved
    to_value = einsum('bmns,bmnd->bmsd', weights, gradient)
    to_weights = einsum('bmnd,bmsd->bmns', gradient, value)
    mean = (gradient.astype(to_weights.dtype) * out).sum(axis=-1, keepdims=True)
    to_logits = (weights * (to_weights - mean)).astype(query.dtype)
    to_bias = None if bias is None else to_logits.sum(axis=0, dtype=bias.dtype)
    to_query = einsum('bmns,bmsd->bmnd', to_logits, key)
    to_key = einsum('bmns,bmnd->bmsd', to_logits, query)
    gradients = to_query, to_key, to_value
    return *(x.astype(query.dtype) for x in gradients), None, to_bias


attend.defvjp(_attend, _attend_backward)


class Attention(nn.Module):
    """Multi-head attention followed by residual sum and LayerNorm."""

    num_heads: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self, x: Array, query: Array, key: Array, value: Array, allowed: Array | None = None
    ) -> Array:
        """Returns norm(x + attention(query, key, value)) [B, N, D].

        Args:
            x: [B, N, D] the residual stream.
            query: [B, N, D], x plus its position encoding.
            key: [B, S, D], value: [B, S, D].
            allowed: [B, N, S] bool, the keys each query may attend to; None = all.
        """
        embed_dim = x.shape[-1]

        def heads(name, inputs):
            y = Dense(embed_dim, dtype=self.dtype, kernel_init=attention_input_init, name=name)(
                inputs
            )
            return rearrange(y, 'b n (m d) -> b m n d', m=self.num_heads)

        q, k, v = heads('query', query), heads('key', key), heads('value', value)
        y = attend(q * q.shape[-1] ** -0.5, k, v, allowed)
        y = rearrange(y, 'b m n d -> b n (m d)')
        y = Dense(embed_dim, dtype=self.dtype, kernel_init=xavier_uniform, name='output')(y)
        return LayerNorm(name='norm')(x + y)
