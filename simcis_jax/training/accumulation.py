"""Gradient accumulation: a device's images in parts, one after the other, with the same results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def count_parts(batch_size: int, num_devices: int, images_at_once: int) -> int:
    """How many parts a device's share of the batch has; `images_at_once` = 0 is one part.

    Raises:
        ValueError: the share cannot be divided so.
    """
    share = batch_size // num_devices
    if images_at_once < 0 or share % (images_at_once or share):
        raise ValueError(
            f'training.images_at_once={images_at_once} does not divide the {share} images that '
            f'each of the {num_devices} devices has of training.batch_size={batch_size}.'
        )
    return share // (images_at_once or share)


def split(tree: Any, num_parts: int) -> Any:
    """Arrays [B, ..] as [M, B / M, ..]."""
    return jax.tree.map(lambda x: x.reshape(num_parts, -1, *x.shape[1:]), tree)


def join(tree: Any) -> Any:
    """Arrays [M, B / M, ..] as [B, ..]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def in_turn(function: Callable[[Any], Any], parts: Any) -> Any:
    """Results of `function` on each part, stacked."""
    return sum_in_turn(lambda part: ((), function(part)), parts)[1]


def sum_in_turn(function: Callable[[Any], tuple[Any, Any]], parts: Any) -> tuple[Any, Any]:
    """The sum over parts of the first result of `function`, and the second results stacked."""
    first = jax.tree.map(lambda x: x[0], parts)
    if len(jax.tree.leaves(parts)[0]) == 1:  # No loop where there is nothing to repeat.
        total, kept = function(first)
        return total, jax.tree.map(lambda x: x[None], kept)

    def add(total, part):
        more, kept = function(part)
        return jax.tree.map(jnp.add, total, more), kept

    shapes, _ = jax.eval_shape(function, first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, parts)
