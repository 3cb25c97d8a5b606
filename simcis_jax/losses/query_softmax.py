"""Losses and matching cost of masks that are a softmax over the queries (CoMFormer).

Probabilities and their logarithms are computed on the maps and then read at points. Reading the
logits first, as for sigmoid masks, would give other values.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.losses.masks import dice, dice_of_pairs
from simcis_jax.losses.point_sampling import sample_features, sample_map
from simcis_jax.model.class_logits import class_probabilities
from simcis_jax.precision import einsum


def log_sums(embeddings: Array, features: Array) -> Array:
    """What log-probabilities of masks subtract from their logits: logsumexp over the queries.

    Args:
        embeddings: [L, B, Q, D].
        features: [B, h, w, D].

    Returns:
        [L, B, h, w].
    """

    @jax.checkpoint  # Masks of all queries and outputs would fill the memory.
    def of_output(embeddings: Array) -> Array:
        return jax.nn.logsumexp(einsum('bqd,bhwd->bqhw', embeddings, features), axis=1)

    return jax.lax.map(of_output, embeddings)


def probabilities_at(points: Array, embeddings: Array, features: Array) -> Array:
    """Mask probabilities [P, Q] of embeddings [Q, D] and features [h, w, D] at points [P, 2]."""
    logits = einsum('hwd,qd->hwq', features, embeddings)
    return sample_features(jax.nn.softmax(logits, axis=-1), points)


def softmax_cost(
    class_logits: Array, probabilities: Array, labels: Array, truth: Array, head: str
) -> Array:
    """Cost [Q, T]: minus the harmonic mean of class probability and dice of the mask.

    Args:
        class_logits: [Q, C], or [Q, C + 1] of the softmax head.
        probabilities: [P, Q] of masks at points.
        labels: [T]; -1 = padding, whose column is undefined.
        truth: [P, T] masks of the targets at the same points.
        head: see `model.class_logits`.
    """
    p = class_probabilities(class_logits, head)[:, labels]
    d = dice_of_pairs(probabilities, truth)
    return -2 * p * d / (p + d)


def softmax_losses_at(points: Array, log_p: Array, truth: Array) -> tuple[Array, Array]:
    """Cross-entropy and dice loss [...] of masks at points; the former only inside of the target.

    Args:
        points: [..., P, 2] points of each mask.
        log_p: [..., h, w] log-probabilities of the masks.
        truth: [..., P] masks of the targets at the points.
    """
    cross_entropy = -(sample_map(log_p, points) * truth).mean(axis=-1)
    return cross_entropy, 1 - dice(sample_map(jnp.exp(log_p), points), truth)
