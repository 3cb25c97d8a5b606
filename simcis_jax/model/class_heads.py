"""The two class heads, and what their logits mean.

sigmoid   C logits, an independent probability per class (SimCIS)
softmax   C + 1 logits, one distribution; the last column is "no object" (Mask2Former)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

HEADS = ('sigmoid', 'softmax')
UNSEEN = -1e9  # The logit of a class without probability; finite, so that a product with 0 is 0.


def num_columns(head: str, num_classes: int) -> int:
    """The number of class logits of a query."""
    return num_classes + 1 if head == 'softmax' else num_classes


def without_unseen(logits: Array, seen: Array) -> Array:
    """Logits [..., C + 1] of the softmax head in which classes not `seen` [C] bool do not compete.

    Their probability is 0, and they get no gradient.
    """
    return jnp.where(jnp.append(seen, True), logits, UNSEEN)


def softmax_probabilities(logits: Array, allowed: Array | None = None) -> Array:
    """Probabilities [..., C + 1] of the softmax head, in float32; "no object" comes last.

    Args:
        logits: [..., C + 1].
        allowed: [C] bool, classes that may be predicted; None = all. Others have probability 0.
    """
    logits = logits.astype(jnp.float32)
    if allowed is not None:
        logits = jnp.where(jnp.append(allowed, True), logits, -jnp.inf)
    return jax.nn.softmax(logits, axis=-1)


def class_probabilities(logits: Array, head: str, allowed: Array | None = None) -> Array:
    """Probabilities [..., C] of the classes; those that are not `allowed` [C] bool have 0."""
    if head == 'softmax':
        return softmax_probabilities(logits, allowed)[..., :-1]
    if allowed is not None:
        logits = jnp.where(allowed, logits, -jnp.inf)
    return jax.nn.sigmoid(logits)


def likeliest_classes(logits: Array, allowed: Array | None = None) -> tuple[Array, Array, Array]:
    """The decision of the softmax head for every query.

    Args:
        logits: [Q, C + 1].
        allowed: [C] bool, classes that may be predicted; None = all.

    Returns:
        The probability [Q] of the likeliest column, the label [Q] int32 of the likeliest class, and
        whether [Q] that class is likelier than "no object".
    """
    probabilities = softmax_probabilities(logits, allowed)
    labels = jnp.argmax(probabilities[..., :-1], axis=-1).astype(jnp.int32)
    is_object = probabilities[..., :-1].max(axis=-1) >= probabilities[..., -1]
    return probabilities.max(axis=-1), labels, is_object
