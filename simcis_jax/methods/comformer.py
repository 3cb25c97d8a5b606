"""CoMFormer (CVPR 2023): continual panoptic and semantic segmentation as mask classification.

softmax masks            the queries compete for every pixel              losses/query_softmax.py
focal class loss         all queries have equal weight                    losses/classification.py
adaptive distillation    least where the teacher is sure of "no object"   losses/unbiased.py
pseudo-labels            without a minimum score                          methods/pseudo_label.py

Where paper and code differ, the defaults are those of the code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.continual.stages import Stage
from simcis_jax.losses.classification import cross_entropies, focal_cross_entropy
from simcis_jax.losses.unbiased import unbiased_distillation
from simcis_jax.methods.base import without_no_object
from simcis_jax.methods.pseudo_label import LenientPseudoLabel
from simcis_jax.methods.step import Step, Term
from simcis_jax.settings.declare import declare


@dataclasses.dataclass(frozen=True)
class CoMFormer(LenientPseudoLabel):
    """Softmax masks, focal class loss, adaptive distillation and pseudo-labels."""

    softmax_masks: bool = declare(
        True, 'Masks are a softmax over the queries; False = independent, by a sigmoid.'
    )
    focal_cross_entropy: bool = declare(
        True, 'Focal class loss, in which all queries have equal weight.'
    )
    distillation_weight: float = declare(10.0, 'Weight of the distillation.', at_least=0)
    adaptive: bool = declare(
        True,
        'Weight queries in the distillation by (1 - p)^2; p is the probability of "no object" that '
        'the teacher gives.',
    )
    teacher_sharpness: float = declare(
        1.0, "Factor of the teacher's class logits in the distillation.", above=0
    )

    changes_first_stage: ClassVar[bool] = True

    def conflicts(self, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """The losses need "no object"."""
        yield from super().conflicts(values)
        yield from without_no_object(values, 'comformer')

    def make_model(self, stages: Sequence[Stage], settings: Mapping[str, Any]) -> nn.Module:
        """The network with this kind of masks."""
        masks = 'softmax' if self.softmax_masks else 'sigmoid'
        return super().make_model(stages, {**settings, 'masks': masks})

    def totals(self, step: Step) -> dict[str, Array]:
        """The basic numbers, and the sum of the weights of queries in the distillation."""
        totals = super().totals(step)
        if step.teacher is not None:
            totals['distillation'] = self.query_weights(step).sum()
        return totals

    def losses(self, step: Step) -> dict[str, Term]:
        """The basic terms with the focal class loss, and the distillation of the last layer."""
        terms = super().losses(step)
        if self.focal_cross_entropy:
            entropy = cross_entropies(step.student.class_logits, step.matched_labels)
            loss = focal_cross_entropy(entropy).mean(axis=-1).sum(axis=-1)
            terms['class'] = Term(loss, step.weights.classification)
        if step.teacher is not None:
            terms['distillation'] = self.distillation(step)
        return terms

    def distillation(self, step: Step) -> Term:
        """The distillation of the last layer, in which new classes are "no object"."""
        student, teacher = step.student.class_logits[-1], self.teacher_logits(step)
        divergence = unbiased_distillation(student, teacher, step.stage.past)
        loss = (self.query_weights(step) * divergence).sum()
        return Term(loss, self.distillation_weight, per='distillation')

    def teacher_logits(self, step: Step) -> Array:
        """The class logits [B, Q, C + 1] that are distilled."""
        return self.teacher_sharpness * step.teacher.class_logits[-1]

    def query_weights(self, step: Step) -> Array:
        """The weights [B, Q] of the queries in the distillation."""
        p = jax.nn.softmax(self.teacher_logits(step), axis=-1)
        return (1 - p[..., -1]) ** 2 if self.adaptive else jnp.ones(p.shape[:-1])
