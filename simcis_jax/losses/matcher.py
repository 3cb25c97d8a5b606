"""Bipartite matching of predictions to targets, inside the compiled step."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from simcis_jax.losses.assignment import NONE, assign
from simcis_jax.losses.boxes import generalized_iou
from simcis_jax.losses.classification import class_cost
from simcis_jax.losses.masks import dice_cost, mask_cost
from simcis_jax.losses.weights import LossWeights


def matching_cost(
    class_logits: Array,
    mask_logits: Array,
    boxes: Array | None,
    labels: Array,
    truth: Array,
    target_boxes: Array,
    weights: LossWeights,
    head: str = 'sigmoid',
) -> Array:
    """Cost [Q, T] of one decoder output on one image.

    Args:
        class_logits: [Q, C], or [Q, C + 1] of the softmax head.
        mask_logits: [P, Q] at P sampled points.
        boxes: [Q, 4]; None = the cost has no terms of boxes.
        labels: [T]; -1 = padding, whose column is undefined.
        truth: [P, T] masks of the targets at the same points.
        target_boxes: [T, 4].
        weights: of the terms.
        head: the class head, see `model.class_logits`.
    """
    cost = (
        weights.classification * class_cost(class_logits, labels, head)
        + weights.mask * mask_cost(mask_logits, truth)
        + weights.dice * dice_cost(mask_logits, truth)
    )
    if boxes is None:
        return cost
    l1 = jnp.abs(boxes[:, None] - target_boxes[None]).sum(axis=-1)
    giou = generalized_iou(boxes[:, None], target_boxes[None])
    return cost + weights.box * l1 - weights.giou * giou


def match(cost: Array, valid: Array) -> tuple[Array, Array]:
    """The cheapest one-to-one assignment of as many queries and targets as possible.

    Args:
        cost: [Q, T]; non-finite entries are chosen only where no finite one is left.
        valid: [T] bool; padding targets get the remaining queries, if there are enough.

    Returns:
        The query of each target [T] int32, all different but for -1, which means that the target
        has none, and the number [] of non-finite costs of valid targets.
    """
    num_queries, num_targets = cost.shape
    finite = jnp.isfinite(cost) & valid
    num_nonfinite = jnp.sum(valid & ~jnp.isfinite(cost))
    # The solver subtracts potentials, so in float32 a huge replacement for non-finite costs would
    # swamp the others. The lowest cost becomes 0 and a replacement just exceeds any sum of T costs.
    low = jnp.min(jnp.where(finite, cost, jnp.inf), initial=jnp.inf)
    cost = jnp.where(finite, cost - low, 0.0)
    cost = jnp.where(finite, cost, jnp.max(cost, initial=0.0) * num_targets + 1.0)

    num_valid = valid.sum()
    if num_targets <= num_queries:
        return _by_targets(cost, valid, num_valid), num_nonfinite
    # The solver assigns every row, so the fewer of the two become its rows.
    few = num_valid <= num_queries
    queries = jnp.where(
        few,
        _by_targets(cost, valid, jnp.where(few, num_valid, 0)),
        _by_queries(cost, valid, jnp.where(few, 0, num_queries)),
    )
    return jnp.where(valid, queries, NONE), num_nonfinite


def _by_targets(cost: Array, valid: Array, num_rows: Array) -> Array:
    """The query of each target [T], if all `num_rows` valid targets get one."""
    num_queries, num_targets = cost.shape
    # Valid targets become the first rows, because the solver reads no others.
    num_valid = valid.sum()
    rank = jnp.where(valid, jnp.cumsum(valid) - 1, num_valid + jnp.cumsum(~valid) - 1)
    order = jnp.zeros(num_targets, jnp.int32).at[rank].set(jnp.arange(num_targets))
    assigned, _ = assign(cost.T[order], num_rows)
    # Padding takes the queries that are left.
    taken = jnp.where(assigned == NONE, num_queries, assigned)  # Out of range: dropped.
    left = jnp.argsort(jnp.zeros(num_queries).at[taken].set(1, mode='drop'), stable=True)
    return jnp.where(valid, assigned[rank], left[rank - num_valid]).astype(jnp.int32)


def _by_queries(cost: Array, valid: Array, num_rows: Array) -> Array:
    """The query of each target [T] or -1, if all `num_rows` queries get a valid target."""
    num_queries, num_targets = cost.shape
    targets, _ = assign(jnp.where(valid, cost, jnp.inf), num_rows)
    targets = jnp.where(targets == NONE, num_targets, targets)  # Out of range: dropped.
    queries = jnp.arange(num_queries, dtype=jnp.int32)
    return jnp.full(num_targets, NONE).at[targets].set(queries, mode='drop')
