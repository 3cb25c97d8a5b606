"""The two kinds of masks, and what their logits mean.

sigmoid   an independent probability per query and pixel (Mask2Former, SimCIS)
softmax   one distribution per pixel over the queries (CoMFormer)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

MASKS = ('sigmoid', 'softmax')


def sigmoid_logits(logits: Array, masks: str, axis: int = -3) -> Array:
    """Logits whose sigmoid is the mask probability, so that code for sigmoid masks reads both.

    They are inf where a probability rounds to 1. Softmax masks are resized before, not after.

    Args:
        logits: [..., Q, h, w]; pixels where all are -inf keep -inf.
        masks: one of `MASKS`.
        axis: of the queries.

    Raises:
        ValueError: `masks` is none of these.
    """
    if masks not in MASKS:
        raise ValueError(f'masks={masks!r} is unknown; one of {MASKS}.')
    if masks == 'sigmoid':
        return logits
    outside = jnp.isneginf(logits)
    log_p = jax.nn.log_softmax(jnp.where(outside, 0.0, logits), axis=axis)
    return jnp.where(outside, -jnp.inf, log_p - jnp.log(-jnp.expm1(log_p)))
