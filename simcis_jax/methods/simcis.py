"""SimCIS (CVPR 2025): rethinking query-based transformers for continual image segmentation.

QPA, section 3.2    queries are selected pixel features         model/query_prealignment.py
CSL, section 3.3    distillation at the teacher's selection     losses/consistent_selection.py
VQ,  section 3.4    stored queries are replayed                 continual/virtual_query.py

on top of pseudo-labels. QPA is part of the model (`model.queries`). CSL is switched off by
`csl_weight=0`, VQ by `num_virtual_queries=0`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.continual import virtual_query
from simcis_jax.continual.virtual_query import QueryBank
from simcis_jax.losses.consistent_selection import (
    consistent_selection_loss,
    distribution_divergence,
)
from simcis_jax.methods.bank_format import BANK
from simcis_jax.methods.pseudo_label import PseudoLabel
from simcis_jax.methods.step import REPLAY, Step, Term
from simcis_jax.settings.declare import declare
from simcis_jax.types import MemoryFormat, Predictions, StageArrays, TrainState, VirtualQueries


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

    memory_format: ClassVar[MemoryFormat] = BANK

    def conflicts(self, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """What needs selected queries must be off without them."""
        yield from super().conflicts(values)
        queries = values.get('model.queries', 'selected')
        for key in ('csl_weight', 'num_virtual_queries', 'decoder_kl_weight'):
            if queries != 'selected' and getattr(self, key):
                yield key, f'0 with model.queries={queries!r}, which selects no pixel features'

    # CSL

    def predict(self, step: Step, **inputs: Any) -> Predictions:
        """Also the class logits where the teacher selects and, for the KL, those after decoding."""
        if step.teacher is None:
            return super().predict(step, **inputs)
        selected = step.teacher.selection.positions
        inputs['scored_positions'] = selected
        if self.decoder_kl_weight == 0:
            return super().predict(step, **inputs)
        student, replayed = super().predict(step, replay_positions=selected, **inputs)
        return student.replace(replayed_class_logits=replayed.class_logits)

    def losses(self, step: Step) -> dict[str, Term]:
        """CSL and, if its weight is positive, KL divergence after the decoder."""
        terms, teacher, student = super().losses(step), step.teacher, step.student
        if teacher is not None and self.csl_weight > 0:
            csl = consistent_selection_loss(
                student.selection.token_logits, teacher.class_logits[0], self.csl_temperature
            )
            terms['csl'] = Term(csl, self.csl_weight)
        if teacher is not None and self.decoder_kl_weight > 0:
            divergence = distribution_divergence(
                teacher.class_logits[-1],
                student.replayed_class_logits[-1],
                self.decoder_kl_temperature,
            )
            terms['decoder_kl'] = Term(divergence, self.decoder_kl_weight)
        return terms

    # VQ

    def init_memory(self, num_classes: int, hidden_dim: int) -> QueryBank:
        """An empty query bank."""
        return virtual_query.create(num_classes, self.bank_size, hidden_dim)

    @property
    def uses_statistics(self) -> bool:
        """See `Method`; sampling needs to know which classes are rare."""
        return self.num_virtual_queries > 0

    def statistics(self, step: Step) -> Array:
        """Number of pseudo-labels [C] of each past class."""
        past = step.stage.past
        counts = jax.nn.one_hot(step.targets.labels, len(past)).sum(axis=(0, 1))
        return jnp.where(past, counts, 0.0)

    def begin_stage(self, state: TrainState, stage: StageArrays, statistics: Any) -> TrainState:
        """Keeps the stored queries and replaces the counts by those of the new stage."""
        if statistics is None:
            return state
        return state.replace(memory=state.memory.replace(counts=statistics))

    def virtual_queries(self, step: Step) -> VirtualQueries | None:
        """Samples stored queries of past classes, rare classes more often."""
        if step.teacher is None:
            return None

        def draw(key):
            past, count, alpha = step.stage.past, self.num_virtual_queries, self.sampling_alpha
            return virtual_query.sample(step.memory, key, past, count, alpha=alpha)

        return VirtualQueries(*jax.vmap(draw)(step.keys(REPLAY)))

    def store(self, step: Step) -> tuple[Array, Array]:
        """The selected queries [B, Q, D] and labels [B, Q] from the matching of the last layer."""
        return step.student.selection.queries, step.matched_labels[-1]

    def update_memory(
        self, memory: QueryBank, stored: tuple[Array, Array], finite: Array
    ) -> QueryBank:
        """Stores the matched queries image by image, best selected first."""
        queries, labels = stored
        # Storing nothing keeps the memory; choosing between two memories would copy it.
        labels = jnp.where(finite, labels, -1)
        return virtual_query.enqueue(
            memory, queries.reshape(-1, queries.shape[-1]), labels.reshape(-1)
        )

    def replayed(self, memory: QueryBank) -> dict[str, int]:
        """The number of stored queries and the bytes of the bank; nothing if none are replayed."""
        if self.num_virtual_queries == 0:
            return {}
        number, num_bytes = virtual_query.stored(memory)
        return {'queries': number, 'query_bytes': num_bytes}
