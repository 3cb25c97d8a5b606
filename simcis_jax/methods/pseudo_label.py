"""Pseudo-labelling: the teacher's segments fill what the stage's ground truth leaves free."""

from __future__ import annotations

import dataclasses

from simcis_jax.continual.pseudo_labels import PseudoLabelRule, merge_targets
from simcis_jax.methods.base import Method
from simcis_jax.types import Predictions, StageArrays, Targets


@dataclasses.dataclass(frozen=True)
class PseudoLabel(Method):
    """Fine-tuning on ground truth and pseudo-labels."""

    pseudo_label_score: float = 0.35
    pseudo_label_overlap: float = 0.8
    merge_classes: bool = False  # One pseudo-label a class: semantic segmentation.

    @property
    def uses_teacher(self) -> bool:
        """See `Method`."""
        return True

    @property
    def rule(self) -> PseudoLabelRule:
        """When the teacher is believed."""
        return PseudoLabelRule(
            score=self.pseudo_label_score,
            overlap=self.pseudo_label_overlap,
            temperature=None if self.merge_classes else PseudoLabelRule.temperature,
            merge_classes=self.merge_classes,
        )

    def targets(self, targets: Targets, teacher: Predictions, stage: StageArrays) -> Targets:
        """Ground truth, then the teacher's believed segments of past classes."""
        return merge_targets(teacher, targets, stage.past, rule=self.rule)
