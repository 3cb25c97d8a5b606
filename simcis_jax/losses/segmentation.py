"""The Mask2Former losses on every prediction set: class, mask, dice, box and GIoU.

Everything here is per image and per prediction set, and mapped over both; the sums are local to a
device and divided by a normaliser that the caller has summed over all devices.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from simcis_jax.losses.boxes import generalized_iou
from simcis_jax.losses.matcher import (
    FOCAL_ALPHA,
    FOCAL_GAMMA,
    LossWeights,
    match,
    matching_cost,
)
from simcis_jax.losses.point_sampling import sample_map, sample_segments, uncertain_points
from simcis_jax.types import Predictions, Targets


@dataclasses.dataclass(frozen=True)
class PointSampling:
    """How many points masks are compared at, and how they are chosen."""

    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_ratio: float = 0.75


@flax.struct.dataclass
class Matches:
    """Which query each target got, for every prediction set."""

    queries: Array  # [L, B, T] int32; meaningless where the target is padding.
    num_broken: Array  # [] int32, costs that were not finite.


def match_targets(
    predictions: Predictions,
    targets: Targets,
    keys: Array,
    *,
    weights: LossWeights,
    num_points: int,
) -> Matches:
    """Matches every prediction set of every image, each at fresh uniform points.

    Args:
        predictions: L prediction sets of B images.
        targets: of the same images.
        keys: [B] random keys.
        weights: of the cost terms.
        num_points: uniform points to compare masks at.
    """

    def one(points, class_logits, embeddings, boxes, features, segment_map, labels, target_boxes):
        mask_logits = jnp.einsum('qd,hwd->qhw', embeddings, features)
        cost = matching_cost(
            class_logits, mask_logits, boxes, segment_map, labels, target_boxes, points, weights
        )
        return match(cost, labels >= 0)

    num_sets = predictions.class_logits.shape[0]
    points = jax.vmap(lambda key: jax.random.uniform(key, (num_sets, num_points, 2)))(keys)
    over_images = jax.vmap(one)
    over_sets = jax.vmap(over_images, in_axes=(1, 0, 0, 0, None, None, None, None))
    queries, num_broken = over_sets(
        points,
        *jax.lax.stop_gradient(
            (predictions.class_logits, predictions.mask_embeddings, predictions.boxes)
        ),
        jax.lax.stop_gradient(predictions.mask_features),
        targets.segment_map,
        targets.labels,
        targets.boxes,
    )
    return Matches(queries, num_broken.sum())


def focal_loss(logits: Array, labels: Array) -> Array:
    """Summed sigmoid focal loss [] of logits [N, C]; label -1 = no class at all."""
    truth = jax.nn.one_hot(labels, logits.shape[-1])
    loss = optax.losses.sigmoid_focal_loss(logits, truth, alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA)
    return loss.sum()


def query_labels(queries: Array, labels: Array, num_queries: int) -> Array:
    """The label [Q] of every query, -1 if unmatched, from matches [T] and target labels [T]."""
    queries = jnp.where(labels >= 0, queries, num_queries)  # Out of range: dropped.
    return jnp.full(num_queries, -1).at[queries].set(labels, mode='drop')


def mask_losses(
    key: Array, logits: Array, segment_map: Array, slot: Array, sampling: PointSampling
) -> tuple[Array, Array]:
    """Binary cross-entropy and dice [] of one mask [h, w] against one slot of the segment map."""
    points = uncertain_points(
        key,
        logits,
        num_points=sampling.num_points,
        oversample_ratio=sampling.oversample_ratio,
        importance_ratio=sampling.importance_ratio,
    )
    return mask_losses_at(points, logits, segment_map, slot)


def mask_losses_at(points: Array, logits: Array, segment_map: Array, slot: Array) -> tuple:
    """`mask_losses` at given points [P, 2]."""
    x = sample_map(logits, points)
    truth = sample_segments(segment_map, points, slot + 1)
    cross_entropy = optax.losses.sigmoid_binary_cross_entropy(x, truth).mean()
    p = jax.nn.sigmoid(x)
    dice = 1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1)
    return cross_entropy, dice


def segmentation_losses(
    predictions: Predictions,
    targets: Targets,
    matches: Matches,
    keys: Array,
    *,
    virtual_labels: Array | None = None,
    sampling: PointSampling,
) -> dict[str, Array]:
    """The five terms, each [L]: summed over the images, unweighted and not normalised.

    Args:
        predictions: L prediction sets of B images.
        targets: of the same images.
        matches: of the same predictions and targets.
        keys: [B] random keys.
        virtual_labels: [B, V] classes of the virtual queries; -1 = ignore the row. They enter the
            class loss only.
        sampling: of points on the masks.
    """
    num_queries = predictions.class_logits.shape[2]
    if virtual_labels is None:
        virtual_labels = jnp.zeros((len(keys), 0), jnp.int32)

    def classification(queries, class_logits, virtual_logits, labels, virtual_labels):
        real = focal_loss(class_logits, query_labels(queries, labels, num_queries))
        # So low a logit without a label has neither loss nor gradient, and is finite.
        used = jnp.where(virtual_labels[:, None] >= 0, virtual_logits, -1e4)
        return real + focal_loss(used, virtual_labels)

    def masks_and_boxes(queries, embeddings, boxes, key, features, segment_map, labels, truth):
        valid = labels >= 0
        logits = jnp.einsum('td,hwd->thw', embeddings[queries], features)
        slots = jnp.arange(labels.shape[0])
        one = functools.partial(mask_losses, segment_map=segment_map, sampling=sampling)
        cross_entropy, dice = jax.vmap(lambda k, x, slot: one(k, x, slot=slot))(
            jax.random.split(key, labels.shape[0]), logits, slots
        )
        l1 = jnp.abs(boxes[queries] - truth).sum(axis=-1)
        giou = 1 - generalized_iou(boxes[queries], truth)
        terms = dict(mask=cross_entropy, dice=dice, box=l1, giou=giou)
        return {name: jnp.where(valid, term, 0.0).sum() for name, term in terms.items()}

    def over_sets_and_images(function, num_per_set, num_shared):
        over_images = jax.vmap(function)
        return jax.vmap(over_images, in_axes=(0,) * num_per_set + (None,) * num_shared)

    num_sets = predictions.class_logits.shape[0]
    keys = jax.vmap(lambda key: jax.random.split(key, num_sets), out_axes=1)(keys)
    terms = over_sets_and_images(masks_and_boxes, 4, 4)(
        matches.queries,
        predictions.mask_embeddings,
        predictions.boxes,
        keys,
        predictions.mask_features,
        targets.segment_map,
        targets.labels,
        targets.boxes,
    )
    terms['class'] = over_sets_and_images(classification, 3, 2)(
        matches.queries,
        predictions.class_logits,
        predictions.virtual_class_logits,
        targets.labels,
        virtual_labels,
    )
    return {name: term.sum(axis=1) for name, term in terms.items()}
