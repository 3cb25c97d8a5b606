"""From class and mask logits to panoptic, semantic and instance segmentations.

All functions take one image, have static shapes and can be jitted and vmapped. Mask logits of -inf
mark pixels outside the image: no query wins them and they are not counted. `head` says what the
class logits mean, see `model.class_logits`.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.model.class_logits import class_probabilities, has_no_object, likeliest_classes
from simcis_jax.model.pixel_competition import NOBODY, compete, pixels_won, values_of_winners
from simcis_jax.model.resize import bilinear_matrix, crop_and_resize
from simcis_jax.precision import einsum

LABELS_AT_ONCE = 16  # One-hot maps that are in memory at a time.


@flax.struct.dataclass
class PanopticSegmentation:
    """Segments that never overlap, numbered from 1 in the order of their queries."""

    segment_map: Array  # [H, W] int32; 0 = nothing, k = segment in slot k - 1.
    labels: Array  # [Q] int32, class of each slot; -1 = no segment.
    scores: Array  # [Q] float32, class score of each slot; 0 = no segment.


@flax.struct.dataclass
class InstanceSegmentation:
    """Instances that may overlap, sorted by class probability."""

    masks: Array  # [K, H, W] bool
    queries: Array  # [K] int32, the query of each mask; several instances may have the same.
    labels: Array  # [K] int32; -1 = no instance.
    scores: Array  # [K] float32, class probability times mask quality; 0 = no instance or no pixel.


def resized_masks(
    mask_logits: Array,
    *,
    padded_size: tuple[int, int],
    size: Array,
    original_size: Array,
    output_shape: tuple[int, int],
) -> Array:
    """Resizes mask logits of a padded input to the original image, bilinearly.

    Resizes to the padded input, crops to the resized image, then resizes to the original image.

    Args:
        mask_logits: [Q, h, w].
        padded_size: height and width of the padded input.
        size: [2] int32, height and width of the image inside the padded input; may be traced.
        original_size: [2] int32, height and width of the original image; may be traced.
        output_shape: of the result; at least `original_size`.

    Returns:
        [Q, *output_shape] logits; -inf beyond `original_size`.
    """
    sizes = dict(size=size, original_size=original_size)
    rows, columns = (
        einsum('op,pi->oi', final, bilinear_matrix(padded, num_in))
        for final, padded, num_in in zip(
            crop_and_resize(output_shape, padded_size, **sizes),
            padded_size,
            mask_logits.shape[1:],
            strict=True,
        )
    )
    resized = einsum('yh,qhw,xw->qyx', rows, mask_logits, columns)
    return jnp.where(_inside(output_shape, original_size), resized, -jnp.inf)


def resized_labels(
    label_map: Array,
    *,
    num_labels: int,
    size: Array,
    original_size: Array,
    output_shape: tuple[int, int],
) -> Array:
    """Resizes the label map of a padded input to the original image.

    The one-hot map of each label is cropped and resized bilinearly; the strongest label wins. A
    few of these maps are in memory at a time.

    Args:
        label_map: [Hp, Wp] integer.
        num_labels: number of labels; the last one fills the result beyond `original_size`.
        size: [2] int32, height and width of the image inside the padded input; may be traced.
        original_size: [2] int32, height and width of the original image; may be traced.
        output_shape: of the result; at least `original_size`.

    Returns:
        [*output_shape] int32.
    """
    sizes = dict(size=size, original_size=original_size)
    rows, columns = crop_and_resize(output_shape, label_map.shape, **sizes)

    def add_labels(strongest, first):
        labels = first + jnp.arange(LABELS_AT_ONCE)
        one_hot = (label_map == labels[:, None, None]).astype(jnp.float32)
        strengths = einsum('yh,chw,xw->cyx', rows, one_hot, columns)
        strength, label = strengths.max(axis=0), labels[strengths.argmax(axis=0)]
        best, best_label = strongest
        stronger = strength > best  # The first of equals wins.
        return (jnp.maximum(strength, best), jnp.where(stronger, label, best_label)), None

    none = jnp.full(output_shape, -1.0), jnp.zeros(output_shape, jnp.int32)
    starts = jnp.arange(0, num_labels, LABELS_AT_ONCE)
    (_, labels), _ = jax.lax.scan(add_labels, none, starts)
    return jnp.where(_inside(output_shape, original_size), labels, num_labels - 1)


def panoptic_inference(
    class_logits: Array,
    masks: Array,
    *,
    is_thing: Array,
    seen: Array | None = None,
    rejected: Array | None = None,
    object_mask_threshold: float,
    overlap_threshold: float = 0.8,
    temperature: float = 0.06,
    head: str = 'sigmoid',
) -> PanopticSegmentation:
    """The panoptic segmentation of class logits [Q, C] and mask logits [Q, H, W].

    Queries with a class probability above `object_mask_threshold` compete for every pixel by class
    score times mask probability. Of a head with "no object", the score is the probability, and
    queries of "no object" do not compete. A query is dropped if it wins fewer pixels than
    `overlap_threshold` times the size of its mask. Stuff segments of one class are merged.

    Args:
        class_logits: [Q, C], or [Q, C + 1] of the softmax head.
        masks: [Q, H, W], at the size of the result.
        is_thing: [C] bool.
        seen: [C] bool, classes that may be predicted; None = all.
        rejected: [C] bool, queries whose best class is one of these are dropped; None = none.
        object_mask_threshold: a query is kept if its best class probability is above this.
        overlap_threshold: smallest ratio of pixels won to pixels inside the mask of the query.
        temperature: of the softmax over the sigmoid head's probabilities, the class score.
        head: the class head.
    """
    confidence, scores, labels, allowed = _classify(class_logits, head, seen, rejected, temperature)
    kept = allowed & (confidence > object_mask_threshold)
    owner, num_won, num_mask, num_segment = _compete(masks, scores, kept)
    kept &= (num_segment > 0) & (num_won / jnp.maximum(num_mask, 1) >= overlap_threshold)

    order = jnp.arange(len(labels))
    same_stuff = kept & (labels[:, None] == labels) & ~is_thing[labels]  # [Q, Q]
    first = jnp.where(is_thing[labels], order, jnp.argmax(same_stuff, axis=1))
    starts = kept & (first == order)
    ids = jnp.where(kept, jnp.cumsum(starts)[first], 0)  # [Q], segment of each query.

    segment_map = values_of_winners(ids, owner, kept, 0).astype(jnp.int32)
    slots = jnp.where(starts, ids - 1, len(labels))  # Out of range = dropped.
    return PanopticSegmentation(
        segment_map=segment_map,
        labels=jnp.full(len(labels), -1, jnp.int32).at[slots].set(labels, mode='drop'),
        scores=jnp.zeros_like(scores).at[slots].set(scores, mode='drop'),
    )


def semantic_inference(
    class_logits: Array,
    masks: Array,
    *,
    seen: Array | None = None,
    rejected: Array | None = None,
    object_mask_threshold: float = 0.4,
    overlap_threshold: float = 0.8,
    temperature: float = 0.06,
    head: str = 'sigmoid',
) -> Array:
    """Label map [H, W] int32 of class logits [Q, C] and mask logits [Q, H, W]; C = unassigned.

    As `panoptic_inference`, except that the overlap test works in both directions: a query that
    wins many more pixels than its mask has, because no other query competes, is dropped as well.
    """
    confidence, scores, labels, allowed = _classify(class_logits, head, seen, rejected, temperature)
    kept = allowed & (confidence >= object_mask_threshold)
    owner, num_won, num_mask, num_segment = _compete(masks, scores, kept)
    smaller, larger = jnp.minimum(num_won, num_mask), jnp.maximum(num_won, num_mask)
    kept &= (num_segment > 0) & (smaller / jnp.maximum(larger, 1) >= overlap_threshold)
    unassigned = class_logits.shape[1] - has_no_object(head)
    return values_of_winners(labels, owner, kept, unassigned).astype(jnp.int32)


def instance_inference(
    class_logits: Array,
    masks: Array,
    *,
    is_thing: Array,
    seen: Array | None = None,
    num_instances: int = 100,
    head: str = 'sigmoid',
) -> InstanceSegmentation:
    """The instances of class logits [Q, C], or [Q, C + 1], and mask logits [Q, H, W].

    The `num_instances` pairs of query and class with the highest class probability are taken; those
    of stuff classes are then dropped, so there may be fewer instances. The score of an instance is
    its class probability times the mean mask probability inside its mask. Only classes `seen` [C]
    bool are predicted; None = all.
    """
    probabilities = class_probabilities(class_logits, head, seen)
    num_classes, probabilities = probabilities.shape[1], probabilities.ravel()
    best, pairs = jax.lax.top_k(probabilities, min(num_instances, probabilities.size))
    queries, labels = pairs // num_classes, pairs % num_classes

    positive = masks > 0
    num_pixels = positive.sum(axis=(1, 2))
    quality = jnp.where(positive, jax.nn.sigmoid(masks), 0).sum(axis=(1, 2)) / (num_pixels + 1e-6)
    valid = is_thing[labels] & (best > 0)
    return InstanceSegmentation(
        masks=positive[queries] & valid[:, None, None],
        queries=queries,
        labels=jnp.where(valid, labels, -1),
        scores=jnp.where(valid, best * quality[queries], 0),
    )


def _inside(shape: tuple[int, int], size: Array) -> Array:
    """[*shape] bool, true for pixels within `size` [2]."""
    return (jnp.arange(shape[0])[:, None] < size[0]) & (jnp.arange(shape[1]) < size[1])


def _seen_only(class_logits: Array, seen: Array | None) -> Array:
    return class_logits if seen is None else jnp.where(seen, class_logits, -jnp.inf)


def _classify(
    class_logits: Array, head: str, seen: Array | None, rejected: Array | None, temperature: float
) -> tuple[Array, Array, Array, Array]:
    """Best class probability, class score, label, and whether the query is allowed, each [Q]."""
    if has_no_object(head):
        scores, labels, allowed = likeliest_classes(class_logits, seen, head)
        return scores, scores, labels, allowed if rejected is None else allowed & ~rejected[labels]
    logits = _seen_only(class_logits.astype(jnp.float32), seen)
    labels = jnp.argmax(logits, axis=1).astype(jnp.int32)
    probabilities = jax.nn.sigmoid(logits)
    scores = jax.nn.softmax(probabilities / temperature, axis=1, where=seen).max(axis=1)
    allowed = jnp.ones(len(labels), bool) if rejected is None else ~rejected[labels]
    return probabilities.max(axis=1), scores, labels, allowed


def _compete(masks: Array, scores: Array, kept: Array) -> tuple[Array, ...]:
    """Assigns every pixel of [Q, H, W] to one of the queries that are `kept` [Q] bool.

    Returns the winner [H, W] of every pixel that is inside the mask of its winner, else `NOBODY`,
    and for each kept query [Q] the number of pixels that it won, that its mask has, and both.
    """
    masks, scores = jnp.asarray(masks), jnp.asarray(scores)

    def mask_of(query):
        return jax.nn.sigmoid(masks[query].astype(jnp.float32)), masks[query] >= 0

    winner, inside, num_mask = compete(kept, scores, mask_of, masks.shape[1:])
    owner = jnp.where(inside, winner, NOBODY)
    return owner, pixels_won(winner, kept), num_mask, pixels_won(owner, kept)
