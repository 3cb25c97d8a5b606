"""The mask terms: cross-entropy and dice over sampled points, as matching cost and as loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.losses.point_sampling import sample_map
from simcis_jax.precision import einsum


@jax.custom_jvp
def softplus(x: Array) -> Array:
    """log(1 + exp(x)) of [...].

    `jax.nn.softplus` also handles infinities, which takes four times as long on CPU.
    """
    return jnp.maximum(x, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


softplus.defjvps(lambda tangent, _, x: jax.nn.sigmoid(x) * tangent)


def dice(p: Array, truth: Array) -> Array:
    """Dice coefficient [...] of mask probabilities and true masks, each [..., P] at points.

    As published, 1 is added to both of its sums; so two empty masks have the coefficient 1.
    """
    overlap, total = (p * truth).sum(axis=-1), p.sum(axis=-1) + truth.sum(axis=-1)
    return (2 * overlap + 1) / (total + 1)


def dice_of_pairs(p: Array, truth: Array) -> Array:
    """`dice` [Q, T] of every mask p [P, Q] and every true mask [P, T], as one matrix product."""
    overlap = einsum('pq,pt->qt', p, truth)
    total = p.sum(axis=0)[:, None] + truth.sum(axis=0)
    return (2 * overlap + 1) / (total + 1)


def mask_cost(logits: Array, truth: Array) -> Array:
    """Binary cross-entropy [Q, T], averaged over points; logits [P, Q], truth [P, T]."""
    overlap = einsum('pq,pt->qt', logits, truth)
    return (softplus(logits).sum(axis=0)[:, None] - overlap) / len(logits)


def dice_cost(logits: Array, truth: Array) -> Array:
    """Dice loss [Q, T] over points; logits [P, Q], truth [P, T]."""
    return 1 - dice_of_pairs(jax.nn.sigmoid(logits), truth)


def mask_losses_at(points: Array, logits: Array, truth: Array) -> tuple[Array, Array]:
    """Binary cross-entropy and dice loss [...] of masks at points.

    Args:
        points: [..., P, 2] points of each mask.
        logits: [..., h, w] of the predicted masks.
        truth: [..., P] masks of the targets at the points.
    """
    x = sample_map(logits, points)
    cross_entropy = (softplus(x) - x * truth).mean(axis=-1)
    return cross_entropy, 1 - dice(jax.nn.sigmoid(x), truth)
