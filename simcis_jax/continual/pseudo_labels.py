"""Pseudo-labels: what the teacher still sees where the ground truth of a stage is silent.

Ground truth names the classes of its stage only. The teacher's confident segments fill the free
pixels, one winner a pixel, and join the targets after the ground truth, surest first.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.model.resize import resize
from simcis_jax.types import Predictions, Targets


@dataclasses.dataclass(frozen=True)
class PseudoLabelRule:
    """When a teacher's prediction is believed."""

    score: float = 0.35  # A query's best class probability must be above this.
    overlap: float = 0.8  # The share of its mask that must remain its own.
    temperature: float | None = 0.06  # Temperature of the ranking score; None ranks by probability.
    merge_classes: bool = False  # One target a class instead of one a query (semantic).


def box_of(mask: Array) -> Array:
    """The tight box (cx, cy, w, h) [4] of a mask [H, W] in [0, 1]; zeros if it is empty."""

    def extent(occupied):
        size = occupied.shape[0]
        low = jnp.argmax(occupied)
        high = size - jnp.argmax(occupied[::-1])
        return (low + high) / (2 * size), (high - low) / size

    (cy, h), (cx, w) = extent(mask.any(axis=1)), extent(mask.any(axis=0))
    return jnp.where(mask.any(), jnp.stack([cx, cy, w, h]), 0.0)


def _believed_segments(
    class_logits: Array,
    mask_logits: Array,
    free: Array,
    allowed: Array,
    rejected: Array | None,
    rule: PseudoLabelRule,
) -> tuple[Array, Array, Array, Array]:
    """Which queries to believe, in which pixels: (keep, labels, scores [Q], owner [H, W])."""
    probabilities = jnp.where(allowed, jax.nn.sigmoid(class_logits), 0.0)
    labels = jnp.argmax(probabilities, axis=-1)
    best = probabilities.max(axis=-1)
    keep = best > rule.score
    if rejected is not None:
        keep &= ~rejected[labels]
    scores = best
    if rule.temperature is not None:
        scaled = jnp.where(allowed, probabilities / rule.temperature, -jnp.inf)
        scores = jax.nn.softmax(scaled, axis=-1).max(axis=-1)

    masks = jax.nn.sigmoid(resize(mask_logits, free.shape))  # In this order: edges depend on it.
    claim = jnp.where(keep[:, None, None], scores[:, None, None] * masks, -1.0)
    owner = jnp.argmax(claim, axis=0)
    on = jnp.take_along_axis(masks, owner[None], axis=0)[0] >= 0.5
    owner = jnp.where(on & free & keep.any(), owner, -1)
    own = (owner == jnp.arange(len(keep))[:, None, None]).sum(axis=(1, 2))
    whole = (masks >= 0.5).sum(axis=(1, 2))
    keep &= (own > 0) & (own > rule.overlap * whole)
    return keep, labels, scores, owner


def add_pseudo_labels(
    class_logits: Array,
    mask_logits: Array,
    targets: Targets,
    allowed: Array,
    *,
    rule: PseudoLabelRule,
    rejected: Array | None = None,
) -> Targets:
    """Merges the teacher's believed segments of one image into its targets.

    Args:
        class_logits: [Q, C] and mask_logits: [Q, h, w], the teacher's final predictions.
        targets: ground truth of the image (no batch axis), its T slots filled from the front.
        allowed: [C] bool, classes the teacher may name.
        rule: when to believe it.
        rejected: [C] bool; a query whose best class is one of these is dropped. The published code
            allows all classes and rejects the first unseen one.

    Returns:
        Targets with the same T slots: ground truth first, then pseudo-labels; segments that find no
        slot are dropped, and counted.
    """
    keep, labels, scores, owner = _believed_segments(
        class_logits, mask_logits, targets.segment_map == 0, allowed, rejected, rule
    )
    num_slots = targets.labels.shape[0]
    num_truth = jnp.sum(targets.labels >= 0)
    if rule.merge_classes:
        present = jnp.zeros(allowed.shape, bool).at[labels].max(keep)
        rank = (jnp.cumsum(present) - 1)[labels]
        num_found = present.sum()
    else:
        order = jnp.argsort(jnp.where(keep, -scores, jnp.inf))
        rank = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
        num_found = keep.sum()
    slot = jnp.where(keep, num_truth + rank, num_slots)

    kept = slot < num_slots
    pseudo = jnp.where((owner >= 0) & kept[owner], slot[owner] + 1, 0)
    pseudo = pseudo.astype(targets.segment_map.dtype)
    pseudo_boxes = jax.vmap(lambda k: box_of(pseudo == k))(jnp.arange(1, num_slots + 1))
    is_truth = jnp.arange(num_slots) < num_truth
    return Targets(
        segment_map=targets.segment_map + pseudo,
        labels=targets.labels.at[slot].set(labels.astype(jnp.int32), mode='drop'),
        boxes=jnp.where(is_truth[:, None], targets.boxes, pseudo_boxes),
        dropped=targets.dropped + jnp.maximum(num_truth + num_found - num_slots, 0),
    )


def merge_targets(
    teacher: Predictions,
    targets: Targets,
    allowed: Array,
    *,
    rule: PseudoLabelRule,
    rejected: Array | None = None,
) -> Targets:
    """`add_pseudo_labels` for a batch, a few images at a time: masks are large at full size."""

    def one(image):
        class_logits, mask_logits, truth = image
        return add_pseudo_labels(
            class_logits,
            mask_logits,
            truth,
            allowed,
            rule=rule,
            rejected=rejected,
        )

    images = (teacher.class_logits[-1], teacher.mask_logits(-1), targets)
    return jax.lax.map(one, images, batch_size=4)
