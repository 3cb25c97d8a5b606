"""The unbiased losses of MiB: "no object" also stands for classes that the labels do not show.

In the labels of a stage, objects of past classes count as "no object"; for the teacher, those of
new classes do. Before two distributions are compared, the probabilities of classes that one of them
does not distinguish are added up.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def merged_log_softmax(logits: Array, merged: Array) -> Array:
    """Log-probabilities [..., C + 1]; the last one is of "no object" or a class `merged` [C] bool.

    The columns of merged classes themselves keep their values.
    """
    log_p = jax.nn.log_softmax(logits, axis=-1)
    rest = jnp.where(jnp.append(merged, True), log_p, -jnp.inf)
    return log_p.at[..., -1].set(jax.nn.logsumexp(rest, axis=-1))


def unbiased_cross_entropy(logits: Array, labels: Array, past: Array) -> Array:
    """Cross-entropy [...] in which a query without a label is "no object" or of a past class.

    Args:
        logits: [..., C + 1] of the softmax head.
        labels: [...] int; -1 = no label.
        past: [C] bool.
    """
    log_p = merged_log_softmax(logits, past)
    columns = jnp.where(labels >= 0, labels, log_p.shape[-1] - 1)
    return -jnp.take_along_axis(log_p, columns[..., None], axis=-1)[..., 0]


def unbiased_distillation(student: Array, teacher: Array, past: Array) -> Array:
    """KL(teacher || student) [...] over the past classes and "anything else".

    Args:
        student: logits [..., C + 1].
        teacher: logits [..., C + 1].
        past: [C] bool, the classes that the teacher knows.
    """
    columns = jnp.append(past, True)
    teacher, student = (merged_log_softmax(logits, ~past) for logits in (teacher, student))
    difference = jnp.where(columns, teacher - student, 0.0)
    return (jnp.where(columns, jnp.exp(teacher), 0.0) * difference).sum(axis=-1)
