"""Pseudo-labelling: the teacher's segments fill the pixels without ground truth."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from simcis_jax.continual.pseudo_labels import PseudoLabelRule, merge_targets
from simcis_jax.declare import declare
from simcis_jax.methods.base import Method
from simcis_jax.methods.step import Step
from simcis_jax.types import Targets


@dataclasses.dataclass(frozen=True)
class PseudoLabel(Method):
    """Fine-tuning on ground truth and pseudo-labels."""

    pseudo_label_score: float = declare(
        0.35, 'Class probability that a pseudo-label must exceed.', at_least=0, at_most=1
    )
    pseudo_label_overlap: float = declare(
        0.8, 'Share of its mask that a pseudo-label must keep.', at_least=0, at_most=1
    )
    merge_classes: bool = declare(False, 'One pseudo-label per class: semantic segmentation.')

    uses_teacher: ClassVar[bool] = True

    @property
    def rule(self) -> PseudoLabelRule:
        """Which predictions of the teacher are kept."""
        return PseudoLabelRule(
            score_threshold=self.pseudo_label_score,
            overlap_threshold=self.pseudo_label_overlap,
            temperature=None if self.merge_classes else PseudoLabelRule.temperature,
            merge_classes=self.merge_classes,
        )

    def targets(self, step: Step) -> Targets:
        """Ground truth, then the teacher's confident segments of past classes."""
        if step.teacher is None:
            return step.batch.targets
        return merge_targets(step.teacher, step.batch.targets, step.stage.past, rule=self.rule)
