"""CSL, consistent selection loss (SimCIS, section 3.3).

The teacher selected its queries at some positions; there, the student's tokens must still mean the
same classes to the student's prototypes. Old objects then keep being selected.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def distribution_divergence(teacher: Array, student: Array, temperature: float = 1.0) -> Array:
    """KL(teacher || student) between the class distributions of logits [..., C], summed over all.

    The softmax runs over all classes, also those no stage has shown yet, as in the published code;
    there is no factor T**2.
    """
    teacher = jax.nn.log_softmax(teacher / temperature)
    student = jax.nn.log_softmax(student / temperature)
    return jnp.sum(jnp.exp(teacher) * (teacher - student))


def consistent_selection_loss(
    token_logits: Array, teacher_positions: Array, teacher_logits: Array, temperature: float = 1.0
) -> Array:
    """CSL, summed over images and queries; divide by the number of images.

    Args:
        token_logits: [B, S, C] of every token of the student.
        teacher_positions: [B, Q] tokens the teacher selected.
        teacher_logits: [B, Q, C] of the teacher's initial queries.
        temperature: of both softmaxes.
    """
    student = jnp.take_along_axis(token_logits, teacher_positions[..., None], axis=1)
    return distribution_divergence(jax.lax.stop_gradient(teacher_logits), student, temperature)
