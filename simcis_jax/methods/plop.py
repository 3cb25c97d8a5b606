"""PLOP (CVPR 2021): local POD of feature maps, and pseudo-labels, on the masks of Mask2Former.

local POD        pooled maps stay those of the teacher    losses/local_pod.py
pseudo-labels    without a minimum score                  continual/pseudo_labels.py
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.continual import new_rows
from simcis_jax.continual.pseudo_labels import PseudoLabelRule
from simcis_jax.declare import declare
from simcis_jax.losses.local_pod import local_pod
from simcis_jax.methods.pseudo_label import PseudoLabel
from simcis_jax.methods.step import METHOD, Step, Term
from simcis_jax.types import Predictions, StageArrays, TrainState


@dataclasses.dataclass(frozen=True)
class PLOP(PseudoLabel):
    """Pseudo-labels, and local POD on the maps of the backbone and the mask features."""

    pseudo_label_score: float = declare(
        0.0, 'Class probability that a pseudo-label must exceed.', at_least=0, at_most=1
    )
    pseudo_label_overlap: float = declare(
        0.5, 'Pixels that a pseudo-label must win, relative to its mask.', at_least=0, at_most=1
    )
    pod_weight: float = declare(
        0.001, 'Weight of local POD, times the root of the share of new classes.', at_least=0
    )

    @property
    def rule(self) -> PseudoLabelRule:
        """As published, pixels that a query wins outside of its mask count too."""
        return dataclasses.replace(super().rule, count_outside=True)

    def begin_stage(self, state: TrainState, stage: StageArrays, statistics: Any) -> TrainState:
        """Random new rows of the class head."""
        key = jax.random.fold_in(state.key, METHOD)
        return state.replace(params=new_rows.random(state.params, stage, key))

    def losses(self, step: Step) -> dict[str, Term]:
        """The basic terms and local POD."""
        terms = super().losses(step)
        if step.teacher is not None:
            distances = local_pod(pod_maps(step.student), pod_maps(step.teacher))
            share = jnp.sum(step.stage.current) / jnp.sum(step.stage.seen)
            terms['pod'] = Term(jnp.sqrt(share) * distances.sum(), self.pod_weight)
        return terms


def pod_maps(predictions: Predictions) -> tuple[Array, ...]:
    """The four maps of the backbone and the mask features, each [B, h, w, D]."""
    return *predictions.features['backbone'], predictions.mask_features
