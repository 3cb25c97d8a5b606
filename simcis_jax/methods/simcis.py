"""SimCIS (CVPR 2025): rethinking query-based transformers for continual image segmentation.

QPA, section 3.2    queries are selected pixel features         model/query_prealignment.py
CSL, section 3.3    distillation at the teacher's selection     losses/consistent_selection.py
VQ,  section 3.4    stored queries are replayed                 continual/virtual_query.py

on top of pseudo-labels. QPA is part of the model (`model.queries`). CSL is switched off by
`csl_weight=0`, VQ by `num_virtual_queries=0`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.continual import virtual_query
from simcis_jax.continual.virtual_query import QueryBank
from simcis_jax.declare import declare
from simcis_jax.losses.consistent_selection import (
    consistent_selection_loss,
    distribution_divergence,
)
from simcis_jax.losses.segmentation import Matches, query_labels
from simcis_jax.methods.pseudo_label import PseudoLabel
from simcis_jax.model.masked_decoder import DecoderOutputs
from simcis_jax.types import Predictions, StageArrays, Targets, VirtualQueries


@dataclasses.dataclass(frozen=True)
class SimCIS(PseudoLabel):
    """Pseudo-labels, consistent selection (CSL) and virtual queries (VQ)."""

    csl_weight: float = declare(2.0, 'Weight of CSL; 0 = off.', at_least=0)
    csl_temperature: float = declare(1.0, 'Temperature of the class distributions of CSL.', above=0)
    decoder_kl_weight: float = declare(
        0.0, "Weight of the KL after decoding the teacher's selection; 0 = off.", at_least=0
    )
    decoder_kl_temperature: float = declare(
        1.0, 'Temperature of the class distributions after decoding.', above=0
    )
    num_virtual_queries: int = declare(1, 'Virtual queries per image; 0 = off.', at_least=0)
    bank_size: int = declare(80, 'Stored queries per class.', at_least=1)
    sampling_alpha: float = declare(
        0.5, 'Exponent of equation 9; 0 = sample all classes equally often.', at_least=0
    )

    @property
    def replays_teacher_queries(self) -> bool:
        """See `Method`."""
        return self.decoder_kl_weight > 0

    # CSL

    def losses(
        self, student: Predictions, replayed: DecoderOutputs | None, teacher: Predictions
    ) -> dict[str, Array]:
        """CSL and, if its weight is positive, KL divergence after the decoder."""
        terms = {}
        if self.csl_weight > 0:
            terms['csl'] = self.csl_weight * consistent_selection_loss(
                student.selection.token_logits,
                teacher.class_logits[0],
                self.csl_temperature,
            )
        if replayed is not None:
            terms['decoder_kl'] = self.decoder_kl_weight * distribution_divergence(
                jax.lax.stop_gradient(teacher.class_logits[-1]),
                replayed.class_logits[-1],
                self.decoder_kl_temperature,
            )
        return terms

    # VQ

    def init_memory(self, num_classes: int, hidden_dim: int) -> QueryBank:
        """An empty query bank."""
        return virtual_query.create(num_classes, self.bank_size, hidden_dim)

    def replayed(self, memory: QueryBank) -> dict[str, int]:
        """The number of stored queries and the bytes of the bank; nothing if none are replayed."""
        if self.num_virtual_queries == 0:
            return {}
        number, num_bytes = virtual_query.stored(memory)
        return {'queries': number, 'query_bytes': num_bytes}

    @property
    def uses_statistics(self) -> bool:
        """See `Method`; sampling needs to know which classes are rare."""
        return self.num_virtual_queries > 0

    def statistics(self, targets: Targets, stage: StageArrays) -> Array:
        """Number of pseudo-labels [C] of each past class."""
        num_classes = stage.past.shape[0]
        counts = jax.nn.one_hot(targets.labels, num_classes).sum(axis=(0, 1))
        return jnp.where(stage.past, counts, 0.0)

    def begin_stage(self, memory: QueryBank, statistics: Array) -> QueryBank:
        """Keeps the stored queries and replaces the counts by those of the new stage."""
        return memory.replace(counts=statistics)

    def virtual_queries(self, memory: QueryBank, stage: StageArrays, keys: Array) -> VirtualQueries:
        """Samples stored queries of past classes, rare classes more often."""

        def draw(key):
            return virtual_query.sample(
                memory, key, stage.past, self.num_virtual_queries, alpha=self.sampling_alpha
            )

        return VirtualQueries(*jax.vmap(draw)(keys))

    def stored_queries(
        self, student: Predictions, targets: Targets, matches: Matches
    ) -> tuple[Array, Array]:
        """The selected queries [B, Q, D] and labels [B, Q] from the matching of the last layer."""
        num_queries = student.selection.queries.shape[1]
        labels = jax.vmap(lambda queries, labels: query_labels(queries, labels, num_queries))
        return student.selection.queries, labels(matches.queries[-1], targets.labels)

    def update_memory(self, memory: QueryBank, queries: Array, labels: Array) -> QueryBank:
        """Stores the queries image by image, best selected first."""
        hidden_dim = queries.shape[-1]
        return virtual_query.enqueue(memory, queries.reshape(-1, hidden_dim), labels.reshape(-1))
