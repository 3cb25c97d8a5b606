"""PLOP (CVPR 2021): local POD of feature maps, and pseudo-labels, on the masks of Mask2Former.

local POD        pooled maps stay those of the teacher    losses/local_pod.py
pseudo-labels    without a minimum score                  methods/pseudo_label.py
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import Array

from simcis_jax.losses.local_pod import local_pod
from simcis_jax.methods.pseudo_label import LenientPseudoLabel
from simcis_jax.methods.step import Step, Term
from simcis_jax.settings.declare import declare
from simcis_jax.types import Predictions


@dataclasses.dataclass(frozen=True)
class PLOP(LenientPseudoLabel):
    """Pseudo-labels, and local POD on the maps of the backbone and the mask features."""

    pod_weight: float = declare(
        0.001, 'Weight of local POD, times the root of the share of new classes.', at_least=0
    )

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
