"""BalConpas (ECCV 2024): balanced continual panoptic segmentation on the original Mask2Former.

distillation       queries of past segments keep the features that the teacher gives them
anti-misguidance   a replayed image does not teach queries to be "no object"
memory             with the class shares of all images so far   continual/proportional_memory.py
pseudo-labels      without a minimum score                      continual/pseudo_labels.py

An image with labels of past classes is a replayed one: it has no pseudo-labels, and its objects of
new classes are not labelled. Where paper and code differ, the defaults are those of the code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.continual.image_memory import ReplayPool
from simcis_jax.continual.proportional_memory import class_proportional
from simcis_jax.losses.classification import cross_entropies
from simcis_jax.losses.segmentation import query_labels
from simcis_jax.methods.base import with_random_rows, without_no_object
from simcis_jax.methods.pseudo_label import PseudoLabel
from simcis_jax.methods.step import Step, Term
from simcis_jax.settings.declare import declare
from simcis_jax.types import StageArrays, Targets, TrainState


@flax.struct.dataclass
class DistilledTargets(Targets):
    """Targets, some of which mark the queries to distil."""

    distilled: Array  # [B, T] bool


@dataclasses.dataclass(frozen=True)
class BalConpas(PseudoLabel):
    """Pseudo-labels, distilled queries, a class loss and a memory for replayed images."""

    pseudo_label_score: float = declare(
        0.0, 'Class probability that a pseudo-label must exceed.', at_least=0, at_most=1
    )
    distillation_weight: float = declare(5.0, 'Weight of the distillation.', at_least=0)
    distil_all_replayed: bool = declare(
        False,
        'Distil the queries of all past segments of a replayed image; False = of as many as the '
        'teacher sees there, as in the published code.',
    )
    anti_misguidance: bool = declare(
        True, 'Unmatched queries have no class loss in replayed images, and a larger one in others.'
    )
    proportional_memory: bool = declare(
        True,
        'Choose replayed images whose class shares are those of all images so far; False = balance '
        'the classes.',
    )

    def conflicts(self, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """The losses need "no object", and the memory its number of images."""
        yield from super().conflicts(values)
        yield from without_no_object(values, 'balconpas')
        if self.proportional_memory and values.get('protocol.replay_megabytes'):
            words = "0 with method.name='balconpas', whose memory has a number of images: set "
            yield 'protocol.replay_megabytes', f'{words}protocol.replay_images'

    def begin_stage(self, state: TrainState, stage: StageArrays, statistics: Any) -> TrainState:
        """Random new rows of the class head."""
        return with_random_rows(state, stage)

    def replay_order(self, pool: ReplayPool) -> Iterator[int]:
        """Keeps the shares of classes among the segments."""
        return class_proportional(pool) if self.proportional_memory else super().replay_order(pool)

    def targets(self, step: Step) -> Targets:
        """The ground truth, with pseudo-labels in images that are not replayed."""
        truth = step.batch.targets
        if step.teacher is None:
            return truth
        replay = is_replayed(step)
        # The teacher sees a replayed image as if it had no labels.
        hidden = truth.replace(
            segment_map=jnp.where(replay[:, None, None], 0, truth.segment_map),
            labels=jnp.where(replay[:, None], -1, truth.labels),
        )
        merged = super().targets(step.replace(batch=step.batch.replace(targets=hidden)))
        pseudo = merged.valid & ~hidden.valid  # First slots of a replayed image.
        targets = jax.tree.map(
            lambda truth, merged: jax.vmap(jnp.where)(replay, truth, merged), truth, merged
        )
        if self.distil_all_replayed:
            pseudo = step.stage.past[targets.labels]
        return DistilledTargets(
            targets.segment_map,
            targets.labels,
            targets.boxes,
            targets.dropped,
            distilled=pseudo & targets.valid,
        )

    def totals(self, step: Step) -> dict[str, Array]:
        """The basic numbers, those of queries without a segment, and that of queries to distil."""
        totals = super().totals(step)
        if step.teacher is not None:
            free = step.teacher.class_logits.shape[2] - step.targets.valid.sum(axis=1)
            totals['free'] = free.sum()
            totals['free_not_replayed'] = jnp.where(is_replayed(step), 0, free).sum()
            totals['distilled'] = step.targets.distilled.sum()
        return totals

    def losses(self, step: Step) -> dict[str, Term]:
        """The basic terms with the class loss for replayed images, and the distillation."""
        terms = super().losses(step)
        if step.teacher is not None:
            if self.anti_misguidance:
                terms['class'] = self.class_term(step)
            terms['distillation'] = self.distillation(step)
        return terms

    def class_term(self, step: Step) -> Term:
        """The class loss [L]; "no object" keeps its total weight, but has none where replayed."""
        losses = cross_entropies(step.student.class_logits, step.matched_labels)
        share = step.totals['free'] / jnp.maximum(step.totals['free_not_replayed'], 1)
        free = jnp.where(is_replayed(step), 0.0, step.weights.no_object * share)[:, None]
        losses = jnp.where(step.matched_labels >= 0, 1.0, free) * losses
        return Term(losses.sum(axis=(1, 2)), step.weights.classification, per='class')

    def distillation(self, step: Step) -> Term:
        """The mean squared distance [L] of queries of student and teacher with the same number.

        It is that of queries that match past segments in the last decoder output.
        """
        student, teacher = step.student.queries, step.teacher.queries
        marks = jnp.where(step.targets.distilled, 0, -1)
        matched = jax.vmap(lambda *match: query_labels(*match, student.shape[2]))
        selected = matched(step.matches.queries[-1], marks) >= 0
        squares = jnp.square(student - teacher).mean(axis=-1)
        loss = jnp.where(selected, squares, 0.0).sum(axis=(1, 2))
        return Term(loss, self.distillation_weight, per='distilled')


def is_replayed(step: Step) -> Array:
    """Whether [B] an image has labels of other classes than those of the stage."""
    truth = step.batch.targets
    return (truth.valid & ~step.stage.current[truth.labels]).any(axis=1)
