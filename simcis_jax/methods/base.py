"""What a continual method may change, as hooks that do nothing; so this class is fine-tuning.

A method is a frozen dataclass: its fields, made by `declare`, are its config keys, its hooks are
pure functions. The trainer and the train step call the hooks and never ask which method it is.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jax import Array

from simcis_jax.losses.segmentation import Matches
from simcis_jax.model.masked_decoder import DecoderOutputs
from simcis_jax.types import Predictions, StageArrays, Targets, VirtualQueries

Memory = Any  # A pytree: what the method carries from step to step and from stage to stage.


@dataclasses.dataclass(frozen=True)
class Method:
    """Fine-tuning: every stage trains on its own labels and nothing protects the past."""

    @property
    def uses_teacher(self) -> bool:
        """From stage 2 on, run the model of the stage before on every batch."""
        return False

    @property
    def replays_teacher_queries(self) -> bool:
        """Also decode, with the student, the tokens that the teacher selected."""
        return False

    def init_memory(self, num_classes: int, hidden_dim: int) -> Memory:
        """The memory before the first stage."""
        return ()

    def replayed(self, memory: Memory) -> dict[str, int]:
        """What of the memory a stage replays, in numbers for its `replay.json`."""
        return {}

    @property
    def uses_statistics(self) -> bool:
        """Before a stage with a teacher, pass over its images once to count `statistics`."""
        return False

    def statistics(self, targets: Targets, stage: StageArrays) -> Any:
        """What to count in a batch of merged targets; the counts of all batches are summed."""
        return ()

    def begin_stage(self, memory: Memory, statistics: Any) -> Memory:
        """The memory a stage starts with; `statistics` are the summed counts."""
        return memory

    def virtual_queries(
        self, memory: Memory, stage: StageArrays, keys: Array
    ) -> VirtualQueries | None:
        """Extra queries for the decoder; `keys` [B] are the images' random keys."""
        return None

    def targets(self, targets: Targets, teacher: Predictions, stage: StageArrays) -> Targets:
        """The targets to train on, given ground truth; called where there is a teacher."""
        return targets

    def losses(
        self, student: Predictions, replayed: DecoderOutputs | None, teacher: Predictions
    ) -> dict[str, Array]:
        """More loss terms, weighted, summed over images; they are divided by the global batch."""
        return {}

    def stored_queries(
        self, student: Predictions, targets: Targets, matches: Matches
    ) -> tuple[Array, Array] | None:
        """Query features [B, Q, D] and labels [B, Q] for `update_memory`; None = store none."""
        return None

    def update_memory(self, memory: Memory, queries: Array, labels: Array) -> Memory:
        """The memory after a step; queries [B, Q, D] and labels [B, Q] of all devices' images."""
        return memory
