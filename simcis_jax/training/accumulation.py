"""Gradient accumulation: each device processes its images in microbatches, one after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from simcis_jax.errors import InputError


def count_microbatches(batch_size: int, num_devices: int, microbatch_size: int) -> int:
    """Number of microbatches per device; with `microbatch_size` 0, one microbatch holds all images.

    Raises:
        InputError: `microbatch_size` does not divide the number of images per device.
    """
    share = batch_size // num_devices
    if microbatch_size < 0 or share % (microbatch_size or share):
        raise InputError(
            f'training.microbatch_size={microbatch_size} does not divide the {share} images that '
            f'each of the {num_devices} devices gets of training.batch_size={batch_size}.'
        )
    return share // (microbatch_size or share)


def split(tree: Any, num_microbatches: int) -> Any:
    """Reshapes arrays [B, ...] to M microbatches [M, B / M, ...]."""
    return jax.tree.map(lambda x: x.reshape(num_microbatches, -1, *x.shape[1:]), tree)


def join(tree: Any) -> Any:
    """Reshapes arrays [M, B / M, ...] back to [B, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def accumulate(function: Callable[[Any], tuple[Any, Any]], microbatches: Any) -> tuple[Any, Any]:
    """Applies `function` to each microbatch, returning a pair of trees.

    The first result of `function` is summed over microbatches, the second stacked to [M, ...].
    """
    first = jax.tree.map(lambda x: x[0], microbatches)
    if len(jax.tree.leaves(microbatches)[0]) == 1:  # A single microbatch needs no loop.
        total, kept = function(first)
        return total, jax.tree.map(lambda x: x[None], kept)

    def add(total, microbatch):
        more, kept = function(microbatch)
        return jax.tree.map(jnp.add, total, more), kept

    shapes, _ = jax.eval_shape(function, first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, microbatches)
