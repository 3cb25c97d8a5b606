"""Queries compete for every pixel: in predicted segmentations and in pseudo-labels.

A pixel goes to the query with the largest score times mask. Only the chosen queries cost time.
Accelerators look at all pixels once for each query where they are slow at looking up, or at adding
to, millions of single numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from simcis_jax.loops import for_each
from simcis_jax.model.platforms import by_platform

NOBODY = -1  # The winner of a pixel that no query wins.


def compete(
    chosen: Array,
    scores: Array,
    mask_of: Callable[[Array], tuple[Array, Array]],
    shape: tuple[int, int],
    *,
    more_than: float = 0.0,
) -> tuple[Array, Array, Array]:
    """The winner of every pixel, the first of equals.

    Args:
        chosen: [Q] bool, the queries that compete.
        scores: [Q].
        mask_of: the mask [H, W] float32 of a query, and the pixels [H, W] bool inside of it.
        shape: (H, W).
        more_than: what score times mask must exceed to win a pixel.

    Returns:
        The winner [H, W] int32 of every pixel, or `NOBODY`; whether the pixel is inside the mask of
        its winner [H, W]; the number of pixels [Q] int32 inside the mask of each chosen query.
    """

    def add(query, state):
        best, winner, inside, areas = state
        mask, in_mask = mask_of(query)
        weighted = scores[query] * mask
        wins = weighted > best
        return (
            jnp.where(wins, weighted, best),
            jnp.where(wins, query, winner),
            jnp.where(wins, in_mask, inside),
            areas.at[query].set(in_mask.sum()),
        )

    start = jnp.full(shape, more_than), jnp.full(shape, NOBODY), jnp.zeros(shape, bool)
    areas = jnp.zeros(len(chosen), jnp.int32)
    _, winner, inside, areas = for_each(chosen, add, (*start, areas))
    return winner, inside, areas


def pixels_won(winner: Array, chosen: Array) -> Array:
    """The number of pixels [Q] int32 that each chosen [Q] query has in `winner` [H, W]."""
    return by_platform(cpu=_histogram, default=_count_one_by_one)(winner, chosen)


def values_of_winners(values: Array, winner: Array, chosen: Array, default: int) -> Array:
    """`values` [Q] at `winner` [H, W], and `default` where it is none of the chosen [Q] queries."""
    default = jnp.asarray(default, values.dtype)
    return by_platform(tpu=_fill_one_by_one, default=_look_up)(values, winner, chosen, default)


def _histogram(winner: Array, chosen: Array) -> Array:
    bins = jnp.where(winner == NOBODY, len(chosen), winner)  # Out of range = dropped.
    counts = jnp.zeros(len(chosen), jnp.int32).at[bins].add(1, mode='drop')
    return jnp.where(chosen, counts, 0)


def _count_one_by_one(winner: Array, chosen: Array) -> Array:
    def count(query, counts):
        return counts.at[query].set((winner == query).sum())

    return for_each(chosen, count, jnp.zeros(len(chosen), jnp.int32))


def _look_up(values: Array, winner: Array, chosen: Array, default: Array) -> Array:
    found = jnp.where(chosen, values, default)[winner]
    return jnp.where(winner == NOBODY, default, found)


def _fill_one_by_one(values: Array, winner: Array, chosen: Array, default: Array) -> Array:
    def fill(query, filled):
        return jnp.where(winner == query, values[query], filled)

    return for_each(chosen, fill, jnp.full(winner.shape, default))
