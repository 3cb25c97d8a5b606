"""Initialises the rows of the class head for the classes that a stage adds.

All rows exist from stage 1 on. Weight decay shrinks those of later classes until their stage
begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from simcis_jax.types import StageArrays

NEVER = -1e4  # Bias of a class without probability; finite in float16, too.


def from_no_object(params: Any, stage: StageArrays) -> Any:
    """Shares the probability of "no object" evenly between it and the new classes (MiB).

    Args:
        params: of a network with the softmax head.
        stage: that begins; stage 1 changes nothing.
    """
    later = stage.past.any()
    new = jnp.append(stage.current, False) & later
    kernel, bias = _class_head(params)
    share = bias[-1] - jnp.log1p(stage.current.sum())
    kernel = jnp.where(new, kernel[:, -1:], kernel)
    bias = jnp.where(new.at[-1].set(later), share, bias)
    return _with_class_head(params, kernel, bias)


def random(params: Any, stage: StageArrays, key: Array) -> Any:
    """Draws new rows as those of any linear layer.

    Args:
        params: of any network.
        stage: that begins; stage 1 changes nothing.
        key: a random key.
    """
    kernel, bias = _class_head(params)
    new = stage.current & stage.past.any()
    new = jnp.pad(new, (0, len(bias) - len(new)))  # "No object" is not new.
    bound = kernel.shape[0] ** -0.5
    drawn = jax.random.uniform(key, (len(kernel) + 1, len(bias)), minval=-bound, maxval=bound)
    return _with_class_head(
        params, jnp.where(new, drawn[:-1], kernel), jnp.where(new, drawn[-1], bias)
    )


def without_unseen_rows(params: Any, seen: Sequence[int]) -> Any:
    """Rows that give the classes of later stages no probability, for use outside of a run.

    Args:
        params: of a network with the softmax head, as NumPy arrays.
        seen: the labels of the classes that have been learned.
    """
    kernel, bias = _class_head(params)
    unseen = ~np.isin(np.arange(len(bias)), [*seen, len(bias) - 1])
    return _with_class_head(
        params,
        np.where(unseen, np.float32(0), kernel),
        np.where(unseen, np.float32(NEVER), bias),
    )


def _class_head(params: Any) -> tuple[Array, Array]:
    dense = params['heads']['class_head']['dense']
    return dense['kernel'], dense['bias']


def _with_class_head(params: Any, kernel: Array, bias: Array) -> Any:
    class_head = {'dense': {'kernel': kernel, 'bias': bias}}
    return {**params, 'heads': {**params['heads'], 'class_head': class_head}}
