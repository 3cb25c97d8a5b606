"""MiB (CVPR 2020): modeling the background for incremental learning, on the masks of Mask2Former.

unbiased cross-entropy    "no object" may be a past class            losses/unbiased.py
unbiased distillation     a new class is "no object" to the teacher  losses/unbiased.py
balanced initialisation   new rows share what "no object" had        continual/new_rows.py
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp

from simcis_jax.continual import new_rows
from simcis_jax.losses.classification import focal_cross_entropy
from simcis_jax.losses.unbiased import unbiased_cross_entropy, unbiased_distillation
from simcis_jax.methods.base import Method, with_random_rows, without_no_object
from simcis_jax.methods.step import Step, Term
from simcis_jax.settings.declare import declare
from simcis_jax.types import StageArrays, TrainState


@dataclasses.dataclass(frozen=True)
class MiB(Method):
    """Unbiased cross-entropy and distillation; new classes begin as "no object"."""

    distillation_weight: float = declare(200.0, 'Weight of the distillation.', at_least=0)
    balanced_initialization: bool = declare(
        True, 'New rows of the class head share the probability of "no object"; False = random.'
    )
    focal_cross_entropy: bool = declare(
        False, 'Focal class loss in later stages, in which all queries have equal weight.'
    )

    uses_teacher: ClassVar[bool] = True

    def conflicts(self, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """The losses need "no object"."""
        yield from super().conflicts(values)
        yield from without_no_object(values, 'mib')

    def begin_stage(self, state: TrainState, stage: StageArrays, statistics: Any) -> TrainState:
        """New rows of the class head."""
        if self.balanced_initialization:
            return state.replace(params=new_rows.from_no_object(state.params, stage))
        return with_random_rows(state, stage)

    def losses(self, step: Step) -> dict[str, Term]:
        """The basic terms with the unbiased class loss, and the distillation of the last layer."""
        terms = super().losses(step)
        if step.teacher is None:
            return terms
        terms['class'] = self.class_term(step)
        student, teacher = step.student.class_logits[-1], step.teacher.class_logits[-1]
        divergence = unbiased_distillation(student, teacher, step.stage.past)
        terms['distillation'] = Term(divergence.mean(axis=-1).sum(), self.distillation_weight)
        return terms

    def class_term(self, step: Step) -> Term:
        """The unbiased class loss [L]."""
        logits, weight = step.student.class_logits, step.weights.classification
        labels = step.matched_labels
        losses = unbiased_cross_entropy(logits, labels, step.stage.past)
        if self.focal_cross_entropy:
            return Term(focal_cross_entropy(losses).mean(axis=-1).sum(axis=-1), weight)
        losses = jnp.where(labels >= 0, 1.0, step.weights.no_object) * losses
        return Term(losses.sum(axis=(1, 2)), weight, per='class')
