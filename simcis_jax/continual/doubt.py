"""Classes that the teacher half believes: likely enough to be there, too unlikely to be a target.

Without a pseudo-label, segments of such a class are trained as background, so the next teacher is
less sure of them, until the class is forgotten.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.model.class_logits import UNSEEN


def doubtful_classes(teacher_logits: Array, labels: Array, past: Array, score: float) -> Array:
    """Which classes [B, C] are in doubt: past ones above the score that no target has.

    Args:
        teacher_logits: [B, Q, C] of the sigmoid head.
        labels: [B, T] of ground truth and pseudo-labels; -1 = padding.
        past: [C] bool.
        score: the highest probability of a class in the image must exceed this.
    """
    likely = jax.nn.sigmoid(teacher_logits).max(axis=1) > score
    present = (labels[:, :, None] == jnp.arange(len(past))).any(axis=1)
    return past & likely & ~present


def without_doubt(class_logits: Array, matched_labels: Array, doubtful: Array) -> Array:
    """Class logits that have neither loss nor gradient where a class is in doubt.

    Args:
        class_logits: [L, B, Q, C] of the sigmoid head.
        matched_labels: [L, B, Q]; queries with a target, not -1, have their loss.
        doubtful: [B, C] bool.
    """
    unmatched = matched_labels[..., None] < 0
    return jnp.where(unmatched & doubtful[:, None], UNSEEN, class_logits)
