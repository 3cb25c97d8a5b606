"""The class heads, and what their logits mean.

sigmoid       C logits, an independent probability per class (SimCIS)
softmax       C + 1 logits, one distribution; the last column is "no object" (Mask2Former)
independent   C + 1 logits, an independent probability per class and of "no object" (ECLIPSE)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

HEADS = ('sigmoid', 'softmax')  # That a config chooses from; a method may choose 'independent'.
UNSEEN = -1e9  # The logit of a class without probability; finite, so that a product with 0 is 0.


def has_no_object(head: str) -> bool:
    """Whether the last column of the class logits is "no object"."""
    return head != 'sigmoid'


def num_columns(head: str, num_classes: int) -> int:
    """The number of class logits of a query."""
    return num_classes + has_no_object(head)


def with_no_object(allowed: Array) -> Array:
    """The columns [..., C + 1] that may be predicted: the `allowed` [..., C] and "no object"."""
    return jnp.pad(allowed, [(0, 0)] * (allowed.ndim - 1) + [(0, 1)], constant_values=True)


def without_unseen(logits: Array, seen: Array) -> Array:
    """Logits [..., C + 1] in which classes that are not `seen` [C] bool do not compete.

    Their probability is 0, and they get no gradient. `seen` may differ between queries: [..., C].
    """
    return jnp.where(with_no_object(seen), logits, UNSEEN)


def softmax_probabilities(logits: Array, allowed: Array | None = None) -> Array:
    """Probabilities [..., C + 1] of the softmax head, in float32; "no object" comes last.

    Args:
        logits: [..., C + 1].
        allowed: [C] bool, classes that may be predicted; None = all. Others have probability 0.
    """
    logits = logits.astype(jnp.float32)
    if allowed is not None:
        logits = jnp.where(with_no_object(allowed), logits, -jnp.inf)
    return jax.nn.softmax(logits, axis=-1)


def class_probabilities(logits: Array, head: str, allowed: Array | None = None) -> Array:
    """Probabilities [..., C] of the classes; those that are not `allowed` [C] bool have 0."""
    if head == 'softmax':
        return softmax_probabilities(logits, allowed)[..., :-1]
    if has_no_object(head):
        logits = logits[..., :-1]
    if allowed is not None:
        logits = jnp.where(allowed, logits, -jnp.inf)
    return jax.nn.sigmoid(logits)


def likeliest_classes(
    logits: Array, allowed: Array | None = None, head: str = 'softmax'
) -> tuple[Array, Array, Array]:
    """The decision of a head that has "no object", for every query.

    Args:
        logits: [Q, C + 1].
        allowed: [C] bool, classes that may be predicted; None = all.
        head: 'softmax' or 'independent'.

    Returns:
        The probability [Q] of the likeliest column, the label [Q] int32 of the likeliest class, and
        whether [Q] that class is likelier than "no object".
    """
    if head == 'softmax':
        probabilities = softmax_probabilities(logits, allowed)
        classes, no_object = probabilities[..., :-1], probabilities[..., -1]
    else:
        classes = class_probabilities(logits.astype(jnp.float32), head, allowed)
        no_object = jax.nn.sigmoid(logits[..., -1].astype(jnp.float32))
    best, labels = classes.max(axis=-1), jnp.argmax(classes, axis=-1).astype(jnp.int32)
    return jnp.maximum(best, no_object), labels, best >= no_object
