"""Semantic segmentation of the original Mask2Former: every query adds to the scores of all classes.

Shapes are static, so that the functions can be jitted and vmapped.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.model.class_logits import class_probabilities
from simcis_jax.model.resize import crop_and_resize
from simcis_jax.precision import einsum


def class_scores(
    class_logits: Array, masks: Array, *, seen: Array | None = None, head: str = 'softmax'
) -> Array:
    """Scores [C, H, W] of every class at every pixel.

    The sum over the queries of class probability times mask probability, of class logits [Q, C], or
    [Q, C + 1] of the softmax head, and mask logits [Q, H, W]. Only classes `seen` [C] bool have a
    score above 0; None = all.
    """
    probabilities = class_probabilities(class_logits, head, seen)
    return einsum('qc,qyx->cyx', probabilities, jax.nn.sigmoid(masks.astype(jnp.float32)))


def strongest_class(scores: Array) -> Array:
    """The label map [H, W] int32 of scores [C, H, W]; every pixel has a class."""
    return jnp.argmax(scores, axis=0).astype(jnp.int32)


def resized_scores(
    scores: Array, *, size: Array, original_size: Array, output_shape: tuple[int, int]
) -> Array:
    """Resizes scores [C, Hp, Wp] of a padded input to the original image, [C, *output_shape].

    Sizes are those of `resized_labels`.
    """
    sizes = dict(size=size, original_size=original_size)
    rows, columns = crop_and_resize(output_shape, scores.shape[1:], **sizes)
    return einsum('yh,chw,xw->cyx', rows, scores, columns)
