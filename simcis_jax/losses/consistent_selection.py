"""CSL, consistent selection loss (SimCIS, section 3.3).

At the positions where the teacher selected its queries, the class distributions of the student's
tokens are pulled towards those of the teacher, so that objects of past classes stay selected.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def distribution_divergence(teacher: Array, student: Array, temperature: float = 1.0) -> Array:
    """KL(teacher || student) [] of the class distributions of logits [..., C], summed over [...].

    As in the published code, the softmax includes the classes of future stages and there is no
    factor temperature**2.
    """
    teacher = jax.nn.log_softmax(teacher / temperature)
    student = jax.nn.log_softmax(student / temperature)
    return jnp.sum(jnp.exp(teacher) * (teacher - student))


def consistent_selection_loss(
    token_logits: Array, teacher_logits: Array, temperature: float = 1.0
) -> Array:
    """CSL [], summed over images and queries; the caller divides by the number of images.

    Args:
        token_logits: [B, Q, C] class logits of the student's tokens where the teacher selected.
        teacher_logits: [B, Q, C] class logits of the teacher's initial queries.
        temperature: of both softmaxes.
    """
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    return distribution_divergence(teacher_logits, token_logits, temperature)
