"""The Mask2Former losses on every decoder output: class, mask, dice and, of boxes, L1 and GIoU.

Losses are computed per image and decoder output and summed over the images of a device; the caller
divides them by a normaliser that is summed over all devices.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.losses.boxes import generalized_iou
from simcis_jax.losses.chunks import sum_chunks
from simcis_jax.losses.classification import class_loss
from simcis_jax.losses.masks import mask_losses_at
from simcis_jax.losses.matcher import match, matching_cost
from simcis_jax.losses.point_sampling import (
    sample_features,
    sample_segments,
    sample_slots,
    uncertain_points,
)
from simcis_jax.losses.query_softmax import (
    log_sums,
    probabilities_at,
    softmax_cost,
    softmax_losses_at,
)
from simcis_jax.losses.weights import LossWeights
from simcis_jax.precision import einsum
from simcis_jax.settings.declare import declare
from simcis_jax.types import Predictions, Targets

# Slots of each image whose masks are compared at once. Valid slots come first and only chunks that
# hold one are computed. All images and decoder outputs share a chunk, to keep an accelerator busy.
SLOTS_PER_CHUNK = 8
# Number of chunks whose points are kept for the backward pass. Few images have more segments, and
# the points of 100 slots of 8 images would take 1.2 GiB.
KEPT_CHUNKS = 4


@dataclasses.dataclass(frozen=True)
class PointSampling:
    """Number and choice of the points at which masks are compared."""

    num_points: int = declare(12544, 'Points at which masks are compared.', at_least=1)
    oversample_ratio: float = declare(3.0, 'Candidates drawn for each point.', at_least=1)
    importance_ratio: float = declare(
        0.75, 'Share of points where the mask is most uncertain.', at_least=0, at_most=1
    )


@flax.struct.dataclass
class Matches:
    """The query assigned to each target, for every decoder output."""

    queries: Array  # [L, B, T] int32; -1 = has none, undefined for padding targets.
    num_nonfinite: Array  # [] int32, number of non-finite costs.


@jax.named_scope('match_targets')
def match_targets(
    predictions: Predictions,
    targets: Targets,
    keys: Array,
    *,
    weights: LossWeights,
    num_points: int,
) -> Matches:
    """Matches targets to every decoder output of every image, each at its own uniform points.

    Args:
        predictions: L decoder outputs of B images.
        targets: of the same images.
        keys: [B] random keys.
        weights: of the cost terms; the cost of softmax masks has none.
        num_points: number of uniform points at which masks are compared.
    """

    def cost(points, class_logits, embeddings, boxes, features, segment_map, labels, true_boxes):
        truth = sample_slots(segment_map, points, len(labels))
        if predictions.masks == 'softmax':
            probabilities = probabilities_at(points, embeddings, features)
            return softmax_cost(class_logits, probabilities, labels, truth, predictions.head)
        # Masks are linear in the features: sampling those samples all masks at once.
        mask_logits = einsum('pd,qd->pq', sample_features(features, points), embeddings)
        return matching_cost(
            class_logits, mask_logits, boxes, labels, truth, true_boxes, weights, predictions.head
        )

    predictions = jax.lax.stop_gradient(predictions)
    shared = predictions.mask_features, targets.segment_map, targets.labels, targets.boxes
    num_outputs = predictions.class_logits.shape[0]
    draw = functools.partial(jax.random.uniform, shape=(num_outputs, num_points, 2))
    # One decoder output at a time: the logits of all do not fit the caches.
    costs = jax.lax.map(
        lambda one_output: jax.vmap(cost)(*one_output, *shared),
        (
            jax.vmap(draw, out_axes=1)(keys),
            predictions.class_logits,
            predictions.mask_embeddings,
            predictions.boxes,
        ),
    )
    over_outputs = jax.vmap(jax.vmap(match), in_axes=(0, None))
    queries, num_nonfinite = over_outputs(costs, targets.valid)
    return Matches(queries, num_nonfinite.sum())


def query_labels(queries: Array, labels: Array, num_queries: int) -> Array:
    """The label [Q] of every query, -1 if unmatched.

    Args:
        queries: [T] the query of each target; -1 = none.
        labels: [T] the class of each target; -1 = padding.
        num_queries: Q.
    """
    matched = (labels >= 0) & (queries >= 0)
    queries = jnp.where(matched, queries, num_queries)  # Out of range: dropped.
    return jnp.full(num_queries, -1).at[queries].set(labels, mode='drop')


def mask_terms(
    predictions: Predictions,
    targets: Targets,
    matches: Matches,
    keys: Array,
    sampling: PointSampling,
) -> dict[str, Array]:
    """The mask and dice terms [L] of `segmentation_losses`, computed in chunks of slots."""
    num_outputs, num_slots = predictions.class_logits.shape[0], targets.labels.shape[1]
    softmax = predictions.masks == 'softmax'

    def chunk_of(k, embeddings, features, sums, queries):
        """Slots [t] of a chunk, which of them exist [t], and mask logits [L, B, t, h, w].

        Of softmax masks, these are log-probabilities.
        """
        slots = k * SLOTS_PER_CHUNK + jnp.arange(SLOTS_PER_CHUNK)
        exists = slots < num_slots
        slots = jnp.minimum(slots, num_slots - 1)
        matched = jnp.take_along_axis(embeddings, queries[:, :, slots, None], axis=2)
        logits = einsum('lbtd,bhwd->lbthw', matched, features)
        return slots, exists, logits - sums[:, :, None] if softmax else logits

    @jax.named_scope('choose_points')
    def choose_points(k, inputs, constants):
        queries, keys, segment_map, _ = constants
        slots, _, logits = chunk_of(k, *inputs, queries)
        choose = functools.partial(uncertain_points, **dataclasses.asdict(sampling))
        if softmax:
            choose, logits = functools.partial(choose, centre=0.5), jnp.exp(logits)
        points = jax.lax.map(lambda x: choose(*x), (keys[:, :, slots], logits))
        truth = sample_segments(segment_map[:, None], points, slots + 1)
        return jnp.moveaxis(points, -1, 0), truth  # TPUs lay out two numbers in 128 lanes.

    @jax.named_scope('compare_masks')
    def compare(k, inputs, points_and_truth, constants):
        queries, _, _, valid = constants
        points, truth = points_and_truth
        slots, exists, logits = chunk_of(k, *inputs, queries)
        losses_at = softmax_losses_at if softmax else mask_losses_at
        losses = losses_at(jnp.moveaxis(points, 0, -1), logits, truth)
        counted = valid[:, slots] & exists & (queries[:, :, slots] >= 0)
        return [jnp.where(counted, loss, 0.0).sum(axis=(1, 2)) for loss in losses]

    keys = jax.vmap(lambda key: jax.random.split(key, num_outputs), out_axes=1)(keys)
    keys = jax.vmap(jax.vmap(lambda key: jax.random.split(key, num_slots)))(keys)  # [L, B, T]
    inputs = predictions.mask_embeddings, predictions.mask_features
    inputs = *inputs, log_sums(*inputs) if softmax else None
    used = jnp.where(targets.valid, jnp.arange(1, num_slots + 1), 0).max(initial=0)
    num_chunks, max_chunks = (-(-n // SLOTS_PER_CHUNK) for n in (used, num_slots))
    mask, dice = sum_chunks(
        compare,
        num_chunks,
        inputs,
        (matches.queries, keys, targets.segment_map, targets.valid),
        prepare=choose_points,
        max_chunks=max_chunks,
        max_kept=KEPT_CHUNKS,
    )
    return {'mask': mask, 'dice': dice}


@jax.named_scope('segmentation_losses')
def segmentation_losses(
    predictions: Predictions,
    targets: Targets,
    matches: Matches,
    keys: Array,
    *,
    virtual_labels: Array | None = None,
    sampling: PointSampling,
    no_object_weight: float = 0.1,
) -> dict[str, Array]:
    """The loss terms, each [L]: summed over the images, unweighted and not normalised.

    Args:
        predictions: L decoder outputs of B images.
        targets: of the same images.
        matches: of the same predictions and targets.
        keys: [B] random keys.
        virtual_labels: [B, V] classes of the virtual queries, which contribute to the class loss
            only; -1 = ignored.
        sampling: of points on the masks.
        no_object_weight: weight of unmatched queries in the class loss of the softmax head.

    Returns:
        'class', 'mask', 'dice' and, if the queries have boxes, 'box' and 'giou'.
    """
    num_queries = predictions.class_logits.shape[2]
    if virtual_labels is None:
        virtual_labels = jnp.zeros((len(keys), 0), jnp.int32)

    def classification(queries, class_logits, virtual_logits, labels, virtual_labels):
        matched = query_labels(queries, labels, num_queries)
        return class_loss(
            class_logits,
            matched,
            virtual_logits,
            virtual_labels,
            predictions.head,
            no_object_weight,
        )

    def boxes(queries, boxes, labels, truth):
        l1 = jnp.abs(boxes[queries] - truth).sum(axis=-1)
        giou = 1 - generalized_iou(boxes[queries], truth)
        terms = dict(box=l1, giou=giou)
        matched = (labels >= 0) & (queries >= 0)
        return {name: jnp.where(matched, term, 0.0).sum() for name, term in terms.items()}

    def over_outputs_and_images(function, num_per_output, num_shared):
        over_images = jax.vmap(function)
        return jax.vmap(over_images, in_axes=(0,) * num_per_output + (None,) * num_shared)

    terms = {}
    if predictions.boxes is not None:
        terms = over_outputs_and_images(boxes, 2, 2)(
            matches.queries, predictions.boxes, targets.labels, targets.boxes
        )
    terms['class'] = over_outputs_and_images(classification, 3, 2)(
        matches.queries,
        predictions.class_logits,
        predictions.virtual_class_logits,
        targets.labels,
        virtual_labels,
    )
    terms = {name: term.sum(axis=1) for name, term in terms.items()}
    return terms | mask_terms(predictions, targets, matches, keys, sampling)
