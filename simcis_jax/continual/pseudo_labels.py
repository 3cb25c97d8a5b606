"""Pseudo-labels: segments that the teacher predicts where a stage has no ground truth.

Ground truth covers the classes of its stage only. The teacher's confident segments fill the
unlabelled pixels, one segment per pixel, and follow the ground truth, highest score first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.loops import for_each
from simcis_jax.model.class_logits import class_probabilities, likeliest_classes
from simcis_jax.model.duplicates import merge_duplicates
from simcis_jax.model.pixel_competition import NOBODY, compete, pixels_won
from simcis_jax.model.resize import resize
from simcis_jax.types import Predictions, Targets


@dataclasses.dataclass(frozen=True)
class PseudoLabelRule:
    """Which predictions of the teacher are kept as pseudo-labels."""

    score_threshold: float = 0.35  # The best class probability of a query must be above this.
    overlap_threshold: float = 0.8  # A query must win more than this share of its mask.
    count_outside: bool = False  # Pixels that it wins outside of its mask count as well.
    # Of the softmax that ranks the queries of a sigmoid head; None ranks them by probability.
    temperature: float | None = 0.06
    duplicate_overlap: float = 1.0  # Queries with a larger IoU are one segment; 1 = off.
    merge_classes: bool = False  # One target per class instead of one per query (semantic).


def box_of(mask: Array) -> Array:
    """The tight box [4] (cx, cy, w, h in [0, 1]) of a mask [H, W] bool; zeros if it is empty."""

    def extent(occupied):
        size = occupied.shape[0]
        low = jnp.argmax(occupied)
        high = size - jnp.argmax(occupied[::-1])
        return (low + high) / (2 * size), (high - low) / size

    (cy, h), (cx, w) = extent(mask.any(axis=1)), extent(mask.any(axis=0))
    return jnp.where(mask.any(), jnp.stack([cx, cy, w, h]), 0.0)


def _confident_segments(
    class_logits: Array,
    mask_logits: Array,
    unlabelled: Array,
    allowed: Array,
    rejected: Array | None,
    rule: PseudoLabelRule,
    head: str,
    masks: str,
) -> tuple[Array, Array, Array, Array]:
    """Which queries to keep and which pixels they win: (keep, labels, scores [Q], winner [H, W]).

    The winner of a pixel that is labelled or outside the winning mask is -1.
    """
    if head == 'softmax':
        best, labels, is_object = likeliest_classes(class_logits, allowed)
        keep = is_object & (best > rule.score_threshold)
    else:
        probabilities = class_probabilities(class_logits, head, allowed)
        labels = jnp.argmax(probabilities, axis=-1)
        best = probabilities.max(axis=-1)
        keep = best > rule.score_threshold
    if rejected is not None:
        keep &= ~rejected[labels]
    scores = best
    if head == 'sigmoid' and rule.temperature is not None:
        scaled = jnp.where(allowed, probabilities / rule.temperature, -jnp.inf)
        scores = jax.nn.softmax(scaled, axis=-1).max(axis=-1)

    shape = unlabelled.shape
    mask_of = _resized_masks(mask_logits, shape, masks)
    winner, inside, mask_area = compete(keep, scores, mask_of, shape, more_than=-1.0)
    won = jnp.where(unlabelled, winner, NOBODY)
    winner = jnp.where(inside, won, NOBODY)
    keep &= mask_area > 0  # A query with an empty mask wins no pixel.
    won_area = pixels_won(winner, keep)
    counted = pixels_won(won, keep) if rule.count_outside else won_area
    keep &= (won_area > 0) & (counted > rule.overlap_threshold * mask_area)
    return keep, labels, scores, winner


def _resized_masks(
    mask_logits: Array, shape: tuple[int, int], masks: str
) -> Callable[[Array], tuple[Array, Array]]:
    """A function of a query that returns its mask [H, W] and the pixels [H, W] inside of it.

    Args:
        mask_logits: [Q, h, w].
        shape: (H, W) of the image.
        masks: the kind of masks, see `model.mask_logits`.
    """

    def resized(query):
        return resize(mask_logits[query], shape)  # As published: logits, not probabilities.

    if masks == 'softmax':  # Over all queries, also those that do not compete.
        total = jax.lax.fori_loop(
            0,
            len(mask_logits),
            lambda query, total: jnp.logaddexp(total, resized(query)),
            jnp.full(shape, -jnp.inf),
        )

    def mask_of(query):
        logits = resized(query)
        mask = jnp.exp(logits - total) if masks == 'softmax' else jax.nn.sigmoid(logits)
        return mask, mask >= 0.5

    return mask_of


def add_pseudo_labels(
    class_logits: Array,
    mask_logits: Array,
    targets: Targets,
    allowed: Array,
    *,
    rule: PseudoLabelRule,
    rejected: Array | None = None,
    head: str = 'sigmoid',
    masks: str = 'sigmoid',
) -> Targets:
    """Adds the teacher's confident segments of one image to its targets.

    Args:
        class_logits: [Q, C] of the teacher's last decoder layer; [Q, C + 1] of the softmax head.
        mask_logits: [Q, h, w] of the same.
        targets: ground truth of the image (no batch axis), in the first of its T slots.
        allowed: [C] bool, classes the teacher may predict.
        rule: which predictions to keep.
        rejected: [C] bool; queries whose best class is one of these are dropped. The published code
            allows all classes and rejects the first unseen one.
        head: the class head of the teacher, see `model.class_logits`.
        masks: the kind of its masks, see `model.mask_logits`.

    Returns:
        Targets with the same T slots: ground truth first, then pseudo-labels. Segments beyond the
        last slot are dropped and counted.
    """
    if rule.duplicate_overlap < 1:
        class_logits = merge_duplicates(
            class_logits,
            mask_logits,
            allowed,
            overlap=rule.duplicate_overlap,
            head=head,
            masks=masks,
        )
    keep, labels, scores, winner = _confident_segments(
        class_logits,
        mask_logits,
        targets.segment_map == 0,
        allowed,
        rejected,
        rule,
        head,
        masks,
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

    pseudo = for_each(  # A lookup of the slot of each pixel's winner would be slow on TPU.
        slot < num_slots,
        lambda query, pseudo: jnp.where(
            winner == query, (slot[query] + 1).astype(pseudo.dtype), pseudo
        ),
        jnp.zeros_like(targets.segment_map),
    )
    filled = jnp.zeros(num_slots, bool).at[slot].set(True, mode='drop')
    boxes = for_each(
        filled, lambda slot, boxes: boxes.at[slot].set(box_of(pseudo == slot + 1)), targets.boxes
    )
    return Targets(
        segment_map=targets.segment_map + pseudo,
        labels=targets.labels.at[slot].set(labels.astype(jnp.int32), mode='drop'),
        boxes=boxes,
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
    """`add_pseudo_labels` for a batch, four images at a time: full-size masks are large.

    Args:
        teacher: predictions of the teacher; the last decoder output is used.
        targets: ground truth of the same B images.
        allowed: [C] bool, classes the teacher may predict.
        rule: which predictions to keep.
        rejected: [C] bool; queries whose best class is one of these are dropped.
    """

    def one(image):
        class_logits, mask_logits, truth = image
        return add_pseudo_labels(
            class_logits,
            mask_logits,
            truth,
            allowed,
            rule=rule,
            rejected=rejected,
            head=teacher.head,
            masks=teacher.masks,
        )

    images = (teacher.class_logits[-1], teacher.mask_logits(-1), targets)
    return jax.lax.map(one, images, batch_size=4)
