"""Duplicates: queries that claim the same segment and share its probability.

Training matches one query to each segment. Queries that are almost equal therefore learn to share
its probability: their sum says how likely the segment is, each of them says too little.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.model.class_logits import UNSEEN, class_probabilities, has_no_object, without_unseen
from simcis_jax.model.mask_logits import sigmoid_logits
from simcis_jax.precision import einsum

LARGEST = 1 - 1e-4  # A sum of probabilities is at most this, so that its logit is finite.


def mask_ious(masks: Array) -> Array:
    """Intersection over union [Q, Q] of masks [Q, h, w] bool; 0 if both are empty."""
    pixels = masks.reshape(len(masks), -1).astype(jnp.float32)
    areas = pixels.sum(axis=1)
    intersections = einsum('qp,rp->qr', pixels, pixels)
    return intersections / jnp.maximum(areas[:, None] + areas - intersections, 1)


def merge_duplicates(
    class_logits: Array,
    mask_logits: Array,
    allowed: Array | None,
    *,
    overlap: float,
    head: str = 'sigmoid',
    masks: str = 'sigmoid',
) -> Array:
    """Class logits in which one query per segment has the probability of all its duplicates.

    The most confident query takes over the queries of the same class whose masks overlap its own;
    then the most confident of the others, and so on, as in non-maximum suppression. Its probability
    becomes the sum of theirs, and they predict nothing.

    Args:
        class_logits: [Q, C], or [Q, C + 1] of a head with "no object".
        mask_logits: [Q, h, w].
        allowed: [C] bool, classes that may be predicted; None = all.
        overlap: intersection over union of two masks above which they are one segment.
        head: see `model.class_logits`.
        masks: see `model.mask_logits`.

    Returns:
        The logits of the same head, of the same shape.
    """
    probabilities = class_probabilities(class_logits, head, allowed)
    labels, best = jnp.argmax(probabilities, axis=1), probabilities.max(axis=1)
    on = sigmoid_logits(mask_logits, masks) > 0
    same = (mask_ious(on) > overlap) & (labels[:, None] == labels)
    same |= jnp.eye(len(labels), dtype=bool)  # Also an empty mask is its own.
    order = jnp.argsort(-best)  # Of equals, the first one leads.

    def lead(rank, state):
        total, free = state
        query = order[rank]
        members = same[query] & free & free[query]
        return total.at[query].set(jnp.where(members, best, 0.0).sum()), free & ~members

    nobody = jnp.zeros_like(best), jnp.ones(len(labels), bool)
    total, _ = jax.lax.fori_loop(0, len(labels), lead, nobody)
    total = jnp.minimum(total, LARGEST)[:, None]
    is_label = jnp.arange(class_logits.shape[1]) == labels[:, None]
    if head == 'softmax':  # The other columns share the rest as before.
        if allowed is not None:
            class_logits = without_unseen(class_logits, allowed)
        rest = jax.nn.log_softmax(jnp.where(is_label, -jnp.inf, class_logits), axis=1)
        merged = jnp.where(is_label, jnp.log(total), rest + jnp.log1p(-total))
    else:
        merged = jnp.where(is_label, jnp.log(total) - jnp.log1p(-total), class_logits)
    nothing = jnp.full_like(merged, UNSEEN)
    if has_no_object(head):
        nothing = nothing.at[:, -1].set(-UNSEEN)
    return jnp.where(total > 0, merged, nothing)
