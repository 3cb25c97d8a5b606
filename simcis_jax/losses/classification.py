"""The class term: focal, or weighted cross-entropy for the softmax head.

There are two focal losses: `focal_loss` of the sigmoid head (Lin et al., ICCV 2017), and
`focal_cross_entropy`, which CoMFormer applies to the cross-entropy of each query.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax import Array

from simcis_jax.model.class_logits import UNSEEN, has_no_object, softmax_probabilities

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0  # Of `focal_loss`.
FOCAL_FACTOR = 5.0  # Of `focal_cross_entropy`.


def class_cost(logits: Array, labels: Array, head: str = 'sigmoid') -> Array:
    """Cost [Q, T] of assigning target t to query q.

    Args:
        logits: [Q, C], or [Q, C + 1] of a head with "no object".
        labels: [T]; -1 = padding, whose column is undefined.
        head: see `model.class_logits`.
    """
    if has_no_object(head):  # As published, also if they are independent.
        return -softmax_probabilities(logits)[:, labels]
    p = jax.nn.sigmoid(logits)
    positive = -FOCAL_ALPHA * (1 - p) ** FOCAL_GAMMA * jnp.log(p + 1e-8)
    negative = -(1 - FOCAL_ALPHA) * p**FOCAL_GAMMA * jnp.log(1 - p + 1e-8)
    return (positive - negative)[:, labels]


def focal_loss(logits: Array, labels: Array) -> Array:
    """Sigmoid focal loss [] of logits [N, C] and labels [N], summed; label -1 = no class."""
    truth = jax.nn.one_hot(labels, logits.shape[-1])
    loss = optax.losses.sigmoid_focal_loss(logits, truth, alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA)
    return loss.sum()


def cross_entropies(logits: Array, labels: Array) -> Array:
    """Cross-entropy [...] of logits [..., C + 1] and labels [...]; -1 = "no object"."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    columns = jnp.where(labels >= 0, labels, logits.shape[-1] - 1)
    return -jnp.take_along_axis(log_p, columns[..., None], axis=-1)[..., 0]


def cross_entropy(logits: Array, labels: Array, no_object_weight: float) -> Array:
    """Cross-entropy [] of logits [N, C + 1] and labels [N], summed with weights.

    Label -1 means "no object", the last column, which has its own weight; classes have weight 1.
    """
    weights = jnp.where(labels >= 0, 1.0, no_object_weight)
    return (weights * cross_entropies(logits, labels)).sum()


def focal_cross_entropy(cross_entropy: Array) -> Array:
    """5 (1 - p) times the cross-entropy [...] of a probability p."""
    return FOCAL_FACTOR * (1 - jnp.exp(-cross_entropy)) * cross_entropy


def independent_focal_loss(logits: Array, labels: Array) -> Array:
    """`focal_cross_entropy` [] of independent logits [N, C + 1] and labels [N], over all columns.

    Label -1 means "no object", the last column.
    """
    columns = jnp.where(labels >= 0, labels, logits.shape[-1] - 1)
    truth = jax.nn.one_hot(columns, logits.shape[-1])
    return focal_cross_entropy(optax.sigmoid_binary_cross_entropy(logits, truth)).sum()


def class_loss(
    logits: Array,
    labels: Array,
    virtual_logits: Array,
    virtual_labels: Array,
    head: str,
    no_object_weight: float,
) -> Array:
    """The class loss [] of the queries of one image, summed; see `class_weights`.

    Args:
        logits: [Q, C], or [Q, C + 1] of a head with "no object".
        labels: [Q]; -1 = no class.
        virtual_logits: [V, C] or [V, C + 1] of the virtual queries.
        virtual_labels: [V]; -1 = ignored.
        head: see `model.class_logits`.
        no_object_weight: weight of queries without a class, for the softmax head.
    """
    if head == 'softmax':
        selected = cross_entropy(logits, labels, no_object_weight)
        return selected + cross_entropy(virtual_logits, virtual_labels, 0.0)
    if head == 'independent':  # Has no virtual queries.
        return independent_focal_loss(logits, labels)
    # Without a label, a logit this low has neither loss nor gradient.
    virtual = jnp.where(virtual_labels[:, None] >= 0, virtual_logits, UNSEEN)
    return focal_loss(logits, labels) + focal_loss(virtual, virtual_labels)


def class_weights(num_targets: Array, num_queries: int, no_object_weight: float) -> Array:
    """The sum [] of the weights in `cross_entropy`, which divides the class loss.

    Args:
        num_targets: [] targets of the images; each is matched to one query.
        num_queries: queries of the images.
        no_object_weight: as in `class_loss`.
    """
    return num_targets + no_object_weight * (num_queries - num_targets)
