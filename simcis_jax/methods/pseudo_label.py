"""Pseudo-labelling: the teacher's segments fill the pixels without ground truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from simcis_jax.continual.doubt import doubtful_classes, without_doubt
from simcis_jax.continual.pseudo_labels import PseudoLabelRule, merge_targets
from simcis_jax.methods.base import Method, with_random_rows
from simcis_jax.methods.step import Step, Term
from simcis_jax.settings.declare import declare
from simcis_jax.types import StageArrays, Targets, TrainState


@dataclasses.dataclass(frozen=True)
class PseudoLabel(Method):
    """Fine-tuning on ground truth and pseudo-labels."""

    pseudo_label_score: float = declare(
        0.35, 'Class probability that a pseudo-label must exceed.', at_least=0, at_most=1
    )
    pseudo_label_overlap: float = declare(
        0.8, 'Share of its mask that a pseudo-label must keep.', at_least=0, at_most=1
    )
    pseudo_label_duplicates: float = declare(
        1.0,
        'Queries of a class whose masks overlap more than this (IoU) are one pseudo-label with the '
        'sum of their probabilities; 1 = off.',
        at_least=0,
        at_most=1,
    )
    doubt_score: float = declare(
        1.0,
        'Past classes that the teacher sees in an image with a probability above this, but without '
        'a pseudo-label, are not trained as background; 1 = off.',
        at_least=0,
        at_most=1,
    )
    merge_classes: bool = declare(False, 'One pseudo-label per class: semantic segmentation.')

    uses_teacher: ClassVar[bool] = True

    def conflicts(self, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Doubt needs the sigmoid head, whose class probabilities are independent."""
        yield from super().conflicts(values)
        head = values.get('model.head', 'sigmoid')
        if self.doubt_score < 1 and head != 'sigmoid':
            yield 'doubt_score', f'1 with model.head={head!r}, whose classes are not independent'

    @property
    def rule(self) -> PseudoLabelRule:
        """Which predictions of the teacher are kept."""
        return PseudoLabelRule(
            score_threshold=self.pseudo_label_score,
            overlap_threshold=self.pseudo_label_overlap,
            duplicate_overlap=self.pseudo_label_duplicates,
            temperature=None if self.merge_classes else PseudoLabelRule.temperature,
            merge_classes=self.merge_classes,
        )

    def targets(self, step: Step) -> Targets:
        """Ground truth, then the teacher's confident segments of past classes."""
        if step.teacher is None:
            return step.batch.targets
        return merge_targets(step.teacher, step.batch.targets, step.stage.past, rule=self.rule)

    def losses(self, step: Step) -> dict[str, Term]:
        """The basic terms; the class term ignores what is in doubt."""
        if step.teacher is None or self.doubt_score == 1:
            return super().losses(step)
        doubtful = doubtful_classes(
            step.teacher.class_logits[-1], step.targets.labels, step.stage.past, self.doubt_score
        )
        logits = without_doubt(step.student.class_logits, step.matched_labels, doubtful)
        return super().losses(step.replace(student=step.student.replace(class_logits=logits)))


@dataclasses.dataclass(frozen=True)
class LenientPseudoLabel(PseudoLabel):
    """Pseudo-labels as in the code of CoMFormer: without a minimum score; new rows are random."""

    pseudo_label_score: float = declare(
        0.0, 'Class probability that a pseudo-label must exceed.', at_least=0, at_most=1
    )
    pseudo_label_overlap: float = declare(
        0.5, 'Pixels that a pseudo-label must win, relative to its mask.', at_least=0, at_most=1
    )

    @property
    def rule(self) -> PseudoLabelRule:
        """As published, pixels that a query wins outside of its mask count too."""
        return dataclasses.replace(super().rule, count_outside=True)

    def begin_stage(self, state: TrainState, stage: StageArrays, statistics: Any) -> TrainState:
        """Random new rows of the class head."""
        return with_random_rows(state, stage)
