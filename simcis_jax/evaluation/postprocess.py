"""From class and mask logits to panoptic, semantic and instance segmentations.

Everything here is for one image, has static shapes and can be jitted and vmapped. Mask logits of
-inf lie outside the image: no query wins such a pixel and it counts nowhere.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.model.resize import bilinear_matrix


@flax.struct.dataclass
class PanopticSegmentation:
    """Segments that never overlap, numbered from 1 in the order of their queries."""

    segment_map: Array  # [H, W] int32; 0 = nothing, k = segment in slot k - 1.
    labels: Array  # [Q] int32, class of each slot; -1 = no segment.
    scores: Array  # [Q] float32, class score of each slot; 0 = no segment.


@flax.struct.dataclass
class InstanceSegmentation:
    """Instances that may overlap, best class score first (`scores` also weigh the mask)."""

    masks: Array  # [K, H, W] bool
    labels: Array  # [K] int32; -1 = no instance.
    scores: Array  # [K] float32


def resized_masks(
    mask_logits: Array,
    *,
    padded_size: tuple[int, int],
    size: Array,
    original_size: Array,
    output_shape: tuple[int, int],
) -> Array:
    """Mask logits [Q, h, w] of a padded input as logits [Q, *output_shape] of the original image.

    Resizes to the padded input, crops to the resized image, resizes to the original image, all
    bilinearly. Only `padded_size` and `output_shape` are shapes; `size` (height and width of the
    image inside the padded input) and `original_size`, both [2] int32, may be traced. Pixels of
    the output beyond `original_size` are -inf.
    """
    rows, columns = (
        bilinear_matrix(num_out, padded, size_out=original_size[axis], size_in=size[axis])
        @ bilinear_matrix(padded, mask_logits.shape[axis + 1])
        for axis, (num_out, padded) in enumerate(zip(output_shape, padded_size, strict=True))
    )
    resized = jnp.einsum(
        'yh,qhw,xw->qyx', rows, mask_logits, columns, precision=jax.lax.Precision.HIGHEST
    )
    return jnp.where(_inside(output_shape, original_size), resized, -jnp.inf)


def resized_labels(
    label_map: Array,
    *,
    num_labels: int,
    size: Array,
    original_size: Array,
    output_shape: tuple[int, int],
) -> Array:
    """A label map [Hp, Wp] of a padded input as label map [*output_shape] of the original image.

    The one-hot maps of the `num_labels` labels are cropped to `size` and resized bilinearly to
    `original_size` (both [2], may be traced); the strongest label wins. Pixels of the output
    beyond `original_size` get the last label.
    """
    rows, columns = (
        bilinear_matrix(num_out, num_in, size_out=original_size[axis], size_in=size[axis])
        for axis, (num_out, num_in) in enumerate(zip(output_shape, label_map.shape, strict=True))
    )
    one_hot = jax.nn.one_hot(label_map, num_labels, axis=0)
    strengths = jnp.einsum(
        'yh,chw,xw->cyx', rows, one_hot, columns, precision=jax.lax.Precision.HIGHEST
    )
    labels = jnp.argmax(strengths, axis=0).astype(jnp.int32)
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
) -> PanopticSegmentation:
    """The panoptic segmentation of class logits [Q, C] and mask logits [Q, H, W].

    Queries surer than `object_mask_threshold` compete for every pixel with class score times mask
    probability. One that loses too much of its own mask (wins less than `overlap_threshold` times
    its size) is dropped; stuff segments of one class become one segment.

    Args:
      class_logits: [Q, C].
      masks: [Q, H, W], at the size of the result.
      is_thing: [C] bool.
      seen: [C] bool, the classes that compete; None = all of them.
      rejected: [C] bool, queries whose best class is one of these are dropped.
      object_mask_threshold: a query is kept if its best class probability lies above.
      overlap_threshold: smallest ratio of pixels won to pixels inside the query's own mask.
      temperature: of the softmax over class probabilities that gives the class score.
    """
    confidence, scores, labels, allowed = _classify(class_logits, seen, rejected, temperature)
    kept = allowed & (confidence > object_mask_threshold)
    winner, inside, num_won, num_own, num_segment = _compete(masks, scores * kept)
    kept &= (num_segment > 0) & (num_won / jnp.maximum(num_own, 1) >= overlap_threshold)

    order = jnp.arange(len(labels))
    same_stuff = kept & (labels[:, None] == labels) & ~is_thing[labels]  # [Q, Q]
    first = jnp.where(is_thing[labels], order, jnp.argmax(same_stuff, axis=1))
    starts = kept & (first == order)
    ids = jnp.where(kept, jnp.cumsum(starts)[first], 0)  # [Q], segment of each query.

    segment_map = jnp.where(inside, ids[winner], 0).astype(jnp.int32)
    slots = jnp.where(starts, ids - 1, len(labels))  # Out of range: `drop` leaves these out.
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
) -> Array:
    """Label map [H, W] int32 of class logits [Q, C] and mask logits [Q, H, W]; C = nobody's pixel.

    As `panoptic_inference`, but the overlap test works in both directions: a query that wins much
    more than its own mask (background that nobody claims) is dropped as well.
    """
    confidence, scores, labels, allowed = _classify(class_logits, seen, rejected, temperature)
    kept = allowed & (confidence >= object_mask_threshold)
    winner, inside, num_won, num_own, num_segment = _compete(masks, scores * kept)
    smaller, larger = jnp.minimum(num_won, num_own), jnp.maximum(num_won, num_own)
    kept &= (num_segment > 0) & (smaller / jnp.maximum(larger, 1) >= overlap_threshold)
    nobody = class_logits.shape[1]
    return jnp.where(inside & kept[winner], labels[winner], nobody).astype(jnp.int32)


def instance_inference(
    class_logits: Array,
    masks: Array,
    *,
    is_thing: Array,
    seen: Array | None = None,
    num_instances: int = 100,
) -> InstanceSegmentation:
    """The best pairs of query and class, of class logits [Q, C] and mask logits [Q, H, W].

    The `num_instances` pairs with the highest class probability are taken and those of stuff
    classes left out afterwards, so there may be fewer instances. The score of an instance is its
    class probability times the mean mask probability inside its mask.
    """
    num_classes = class_logits.shape[1]
    probabilities = jax.nn.sigmoid(_seen_only(class_logits, seen)).ravel()
    best, pairs = jax.lax.top_k(probabilities, min(num_instances, probabilities.size))
    queries, labels = pairs // num_classes, pairs % num_classes

    positive = masks > 0
    num_pixels = positive.sum(axis=(1, 2))
    quality = jnp.where(positive, jax.nn.sigmoid(masks), 0).sum(axis=(1, 2)) / (num_pixels + 1e-6)
    valid = is_thing[labels] & (best > 0)
    return InstanceSegmentation(
        masks=positive[queries] & valid[:, None, None],
        labels=jnp.where(valid, labels, -1),
        scores=jnp.where(valid, best * quality[queries], 0),
    )


def _inside(shape: tuple[int, int], size: Array) -> Array:
    """[*shape] bool, true for pixels within `size` [2]."""
    return (jnp.arange(shape[0])[:, None] < size[0]) & (jnp.arange(shape[1]) < size[1])


def _seen_only(class_logits: Array, seen: Array | None) -> Array:
    return class_logits if seen is None else jnp.where(seen, class_logits, -jnp.inf)


def _classify(
    class_logits: Array, seen: Array | None, rejected: Array | None, temperature: float
) -> tuple[Array, Array, Array, Array]:
    """Best class probability, class score, label and whether it may be predicted, each [Q]."""
    logits = _seen_only(class_logits.astype(jnp.float32), seen)
    labels = jnp.argmax(logits, axis=1).astype(jnp.int32)
    probabilities = jax.nn.sigmoid(logits)
    scores = jax.nn.softmax(probabilities / temperature, axis=1, where=seen).max(axis=1)
    allowed = jnp.ones(len(labels), bool) if rejected is None else ~rejected[labels]
    return probabilities.max(axis=1), scores, labels, allowed


def _compete(masks: Array, scores: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Gives every pixel of [Q, H, W] to one query; a score of 0 takes no part.

    Returns the winner [H, W] of every pixel, whether it lies inside the winner's own mask [H, W],
    and of each query [Q] how many pixels it won, has inside its mask, and both.
    """

    def claim(best, query):
        value, winner = best
        index, mask, score = query
        claimed = score * jax.nn.sigmoid(mask.astype(jnp.float32))
        better = claimed > value
        return (jnp.where(better, claimed, value), jnp.where(better, index, winner)), None

    # One query at a time: all at once would hold several arrays as large as the masks.
    indices = jnp.arange(len(masks))
    nobody = jnp.zeros(masks.shape[1:]), jnp.full(masks.shape[1:], -1)
    (_, winner), _ = jax.lax.scan(claim, nobody, (indices, masks, scores))

    def tally(query):
        index, mask = query
        won, own = winner == index, mask >= 0
        return won.sum(), own.sum(), (won & own).sum()

    inside = jnp.take_along_axis(masks, winner[None], axis=0)[0] >= 0
    return winner, inside & (winner >= 0), *jax.lax.map(tally, (indices, masks))
