"""The hooks of a continual method. By default they do nothing, which is plain fine-tuning.

A method is a frozen dataclass: its fields, made by `declare`, are its config keys, its hooks are
pure functions. Trainer, train step, evaluation and the other commands call the hooks without
knowing which method it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.continual import new_rows
from simcis_jax.continual.image_memory import ReplayPool, class_balanced
from simcis_jax.continual.stages import Stage
from simcis_jax.losses.classification import class_weights
from simcis_jax.losses.segmentation import Matches, match_targets, segmentation_losses
from simcis_jax.methods.step import DEPTH, MATCHING, METHOD, SAMPLING, Step, Term
from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.types import (
    MemoryFormat,
    Predictions,
    StageArrays,
    Targets,
    TrainState,
    VirtualQueries,
)

Memory = Any  # A pytree that the method carries from step to step and from stage to stage.


@dataclasses.dataclass(frozen=True)
class Method:
    """Fine-tuning: every stage trains on its own labels, with nothing against forgetting."""

    # Whether, from stage 2 on, the model of the previous stage runs on every batch.
    uses_teacher: ClassVar[bool] = False
    # Whether stage 1 is not plain fine-tuning; experiments do not share it with other methods then.
    changes_first_stage: ClassVar[bool] = False
    # How the memory is read from files of the published code, written to them and reported.
    memory_format: ClassVar[MemoryFormat | None] = None

    def conflicts(self, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yields the key of every value that does not fit the others, and what it must be in words.

        The key is a field of the method, or 'group.key' of a value that the method needs.

        Args:
            values: the whole config by 'group.key', without values that are not allowed.
        """
        return iter(())

    # Model and parameters

    def make_model(self, stages: Sequence[Stage], settings: Mapping[str, Any]) -> nn.Module:
        """The network for all classes of the stages, given the config group `model`."""
        return Mask2Former(num_classes=len(stages[-1].seen), **settings)

    def trainable(self, path: str, stage: Stage) -> bool:
        """Whether a stage trains the parameter at a path such as 'heads/class_head/dense/bias'.

        The others have no optimizer state.
        """
        return True

    # Stages

    def init_memory(self, num_classes: int, hidden_dim: int) -> Memory:
        """The memory before the first stage."""
        return ()

    @property
    def uses_statistics(self) -> bool:
        """Whether `statistics` are gathered over all images before a stage with a teacher."""
        return False

    def statistics(self, step: Step) -> Any:
        """Statistics of a batch, from teacher and targets; those of all batches are summed."""
        return ()

    def begin_stage(self, state: TrainState, stage: StageArrays, statistics: Any) -> TrainState:
        """The state at step 0 of every stage; the optimizer state is made from its parameters.

        Args:
            state: parameters and memory of the stage before, or the initial ones.
            stage: the stage that begins.
            statistics: summed over the images of the stage; None if none were gathered.
        """
        return state

    def end_stage(self, state: TrainState, stage: StageArrays) -> TrainState:
        """The state after the last step of a stage; called once, before it is saved."""
        return state

    def replay_order(self, pool: ReplayPool) -> Iterator[int]:
        """The images of the pool in the order in which the next stage prefers to replay them."""
        return class_balanced(pool.candidates, pool.ranks)

    # The train step, in this order

    def targets(self, step: Step) -> Targets:
        """What the images are trained on; by default the ground truth."""
        return step.batch.targets

    def totals(self, step: Step) -> dict[str, Array]:
        """Numbers [] that loss terms are divided by, from teacher and targets of the step."""
        num_images, num_targets = len(step.targets.labels), jnp.sum(step.targets.valid)
        totals = {'image': jnp.int32(num_images), 'target': num_targets}
        if step.model is not None and step.model.head == 'softmax':
            num_queries = num_images * step.model.num_queries
            totals['class'] = class_weights(num_targets, num_queries, step.weights.no_object)
        return totals

    def virtual_queries(self, step: Step) -> VirtualQueries | None:
        """Queries to decode besides those of the network; they attend to nothing."""
        return None

    def predict(self, step: Step, **inputs: Any) -> Predictions:
        """The predictions of the student.

        Args:
            step: with the parameters of the student.
            **inputs: further arguments of the network, for methods that extend this hook.
        """
        virtual = None if step.virtual is None else step.virtual.queries
        if step.model.stochastic_depth:
            inputs['depth_keys'] = step.keys(DEPTH)
        return step.model.apply(
            {'params': step.params}, step.batch.image, step.selecting, virtual, **inputs
        )

    def match(self, step: Step) -> Matches:
        """The query of each target, in every decoder output."""
        return match_targets(
            step.student,
            step.targets,
            step.keys(MATCHING),
            weights=step.weights,
            num_points=step.sampling.num_points,
        )

    def losses(self, step: Step) -> dict[str, Term]:
        """The loss terms by name; by default class, mask, dice and, of boxes, L1 and GIoU."""
        sums = segmentation_losses(
            step.student,
            step.targets,
            step.matches,
            step.keys(SAMPLING),
            virtual_labels=None if step.virtual is None else step.virtual.labels,
            sampling=step.sampling,
            no_object_weight=step.weights.no_object,
        )
        weights = step.weights.by_term()
        per = dict.fromkeys(sums, 'target')
        if step.student.head == 'softmax':
            per['class'] = 'class'
        return {name: Term(sums[name], weights[name], per[name]) for name in sums}

    def store(self, step: Step) -> Any:
        """What the step gives to `update_memory`: a pytree of arrays [B, ...]."""
        return ()

    def update_memory(self, memory: Memory, stored: Any, finite: Array) -> Memory:
        """The memory after a step.

        Args:
            memory: before the step.
            stored: what `store` returned on all devices, in the order of the global batch.
            finite: [] bool; False if the step has inf or NaN, and must not change the memory.
        """
        return memory

    # Inference and reports

    def class_logits(self, predictions: Predictions, seen: Array | None) -> Array:
        """The class logits [B, Q, C] from which segments are made.

        Args:
            predictions: of a batch of images.
            seen: [C] bool, the classes that may be predicted; None = all.
        """
        return predictions.class_logits[-1]

    def replayed(self, memory: Memory) -> dict[str, int]:
        """What a stage replays from the memory, as numbers for its `replay.json`."""
        return {}


def with_random_rows(state: TrainState, stage: StageArrays) -> TrainState:
    """For `Method.begin_stage`: draws new rows of the class head as those of any linear layer."""
    key = jax.random.fold_in(state.key, METHOD)
    return state.replace(params=new_rows.random(state.params, stage, key))


def without_no_object(values: Mapping[str, Any], name: str) -> Iterator[tuple[str, str]]:
    """For `Method.conflicts` of a method whose losses need "no object": a head that lacks it."""
    if values.get('model.head', 'softmax') != 'softmax':
        yield 'model.head', f'\'softmax\' with method.name={name!r}, which needs "no object"'
