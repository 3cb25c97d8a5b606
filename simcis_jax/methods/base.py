"""The hooks of a continual method. By default they do nothing, which is plain fine-tuning.

A method is a frozen dataclass: its fields, made by `declare`, are its config keys, its hooks are
pure functions. The trainer and the train step call the hooks without knowing which method it is.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jax import Array

from simcis_jax.losses.segmentation import Matches
from simcis_jax.model.masked_decoder import DecoderOutputs
from simcis_jax.types import Predictions, StageArrays, Targets, VirtualQueries

Memory = Any  # A pytree that the method carries from step to step and from stage to stage.


@dataclasses.dataclass(frozen=True)
class Method:
    """Fine-tuning: every stage trains on its own labels, with nothing against forgetting."""

    @property
    def uses_teacher(self) -> bool:
        """Whether, from stage 2 on, the model of the previous stage runs on every batch."""
        return False

    @property
    def replays_teacher_queries(self) -> bool:
        """Whether the student also decodes the tokens that the teacher selected."""
        return False

    def init_memory(self, num_classes: int, hidden_dim: int) -> Memory:
        """The memory before the first stage."""
        return ()

    def replayed(self, memory: Memory) -> dict[str, int]:
        """What a stage replays from the memory, as numbers for its `replay.json`."""
        return {}

    @property
    def uses_statistics(self) -> bool:
        """Whether `statistics` are gathered over all images before a stage with a teacher."""
        return False

    def statistics(self, targets: Targets, stage: StageArrays) -> Any:
        """Statistics of a batch of merged targets; those of all batches are summed."""
        return ()

    def begin_stage(self, memory: Memory, statistics: Any) -> Memory:
        """The memory a stage starts with, given the summed `statistics` of its images."""
        return memory

    def virtual_queries(
        self, memory: Memory, stage: StageArrays, keys: Array
    ) -> VirtualQueries | None:
        """Extra queries for the decoder; `keys` [B] holds one random key per image."""
        return None

    def targets(self, targets: Targets, teacher: Predictions, stage: StageArrays) -> Targets:
        """The targets to train on, given the ground truth; called only if there is a teacher."""
        return targets

    def losses(
        self, student: Predictions, replayed: DecoderOutputs | None, teacher: Predictions
    ) -> dict[str, Array]:
        """Extra loss terms [], weighted, summed over images; divided by the global batch size.

        `student.selection.token_logits` [B, Q, C] are of the tokens that the teacher selected.
        """
        return {}

    def stored_queries(
        self, student: Predictions, targets: Targets, matches: Matches
    ) -> tuple[Array, Array] | None:
        """Query features [B, Q, D] and labels [B, Q] for `update_memory`; None = no update.

        Label -1 = not to be stored.
        """
        return None

    def update_memory(self, memory: Memory, queries: Array, labels: Array) -> Memory:
        """The memory after a step; queries [B, Q, D], labels [B, Q] of the global batch.

        Queries with label -1 must not change the memory and may be NaN; in a step that is not
        finite, all labels are -1.
        """
        return memory
