"""ECLIPSE (CVPR 2024): a frozen network to which every stage adds prompts.

prompts              queries, mask head and class head of a stage    model/prompted_mask2former.py
logit manipulation   what other stages see is "no object" to the queries of a stage

A later stage trains its prompts alone, on its own labels: no teacher, no pseudo-labels, nothing to
forget. Where the paper is silent or the code is odd, the defaults are those of the code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.continual.stages import Stage
from simcis_jax.losses.segmentation import Matches
from simcis_jax.methods.base import Method, without_no_object
from simcis_jax.methods.step import Step, Term
from simcis_jax.model.class_logits import without_unseen
from simcis_jax.model.prompted_mask2former import PromptedMask2Former
from simcis_jax.settings.declare import declare
from simcis_jax.types import Predictions, StageArrays, Targets, TrainState

CLASS_FACTOR = 50.0
OTHER_STAGE = -10.0  # The logit of classes that the queries of a stage cannot name.
LEAST = 1e-3  # The probability of "no object" stays between this and 1 minus this.


@dataclasses.dataclass(frozen=True)
class ECLIPSE(Method):
    """Prompts for every stage, and nothing else, are trained."""

    prompts_per_stage: int = declare(10, 'Prompts that every later stage adds.', at_least=1)
    deep_prompts: bool = declare(
        True, 'Prompts have positions for every decoder layer; False = one for all layers.'
    )
    deltas: tuple[float, ...] = declare(
        (0.4, 0.5),
        '"No object" at inference, one number for the queries of each stage, the last for all '
        'further ones. d > 0: d times the summed probabilities of classes of other stages, at most '
        '1; d < 0: -d times that of "no object"; 0: that of "no object".',
        at_least=-1,
        at_most=1,
    )
    later_class_weight: float = declare(
        10.0,
        'Weight of the class loss in later stages, instead of `loss.classification`.',
        at_least=0,
    )
    all_outputs: bool = declare(
        False, 'Prompts have losses after every layer; False = initial and after the last layer.'
    )
    train_no_object: bool = declare(
        True, 'Later stages train the head of "no object", which the queries of all stages share.'
    )

    changes_first_stage: ClassVar[bool] = True

    def conflicts(self, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """The network is the original Mask2Former, and classes to come do not exist."""
        yield from super().conflicts(values)
        yield from without_no_object(values, 'eclipse')
        for key, needed in (
            ('model.queries', 'learned'),
            ('model.boxes', False),
            ('protocol.mask_unseen', True),
        ):
            if values.get(key, needed) != needed:
                yield key, f"{needed!r} with method.name='eclipse'"

    def make_model(self, stages: Sequence[Stage], settings: Mapping[str, Any]) -> nn.Module:
        """The network with prompts; its classes are independent."""
        return PromptedMask2Former(
            num_classes=len(stages[-1].seen),
            stages=tuple(stage.current for stage in stages),
            num_prompts=self.prompts_per_stage,
            layer_positions=self.deep_prompts,
            **{**settings, 'head': 'independent'},
        )

    def trainable(self, path: str, stage: Stage) -> bool:
        """The network in stage 1, then the newest prompts and the head of "no object"."""
        if stage.index == 0:
            return not path.startswith(('newest/', 'finished/'))
        no_object = self.train_no_object and path.startswith('heads/no_object/')
        return no_object or path.startswith('newest/')

    def begin_stage(self, state: TrainState, stage: StageArrays, statistics: Any) -> TrainState:
        """Keeps the prompts of the stage before; the new ones are all the mean query."""
        if not stage.past.any():
            return state
        params, heads = state.params, state.params['heads']
        old, queries = params['newest'], params['learned_queries']
        slot = jnp.where(stage.index > 1, stage.index - 2, stage.past.size)  # Stage 1 has none.
        finished = jax.tree.map(
            lambda stack, newest: stack.at[slot].set(newest, mode='drop'), params['finished'], old
        )
        newest = {
            'prompts': {
                name: jnp.broadcast_to(queries[name].mean(axis=0), x.shape)
                for name, x in old['prompts'].items()
            },
            'mask_head': heads['mask_head'],
            # Only in the last layer, the shapes differ.
            'class_head': jax.tree.map(
                lambda x, shape: jnp.broadcast_to(x, shape.shape),
                heads['no_object'],
                old['class_head'],
            ),
        }
        newest = jax.tree.map(jnp.copy, newest)  # The train step donates every array once.
        return state.replace(params={**params, 'finished': finished, 'newest': newest})

    def targets(self, step: Step) -> Targets:
        """Those of the classes of the stage only: its prompts cannot predict others."""
        truth = step.batch.targets
        if not is_later(step):
            return truth
        named = truth.valid & step.stage.current[truth.labels]
        return truth.replace(labels=jnp.where(named, truth.labels, -1))

    def predict(self, step: Step, **inputs: Any) -> Predictions:
        """The predictions of the queries that the stage trains."""
        if not is_later(step):
            return super().predict(step, rows='first', **inputs)
        student = super().predict(step, rows='newest', **inputs)
        if self.all_outputs:
            return student
        ends = jnp.array([0, -1])
        names = 'class_logits', 'mask_embeddings', 'virtual_class_logits', 'queries'
        return student.replace(**{name: getattr(student, name)[ends] for name in names})

    def match(self, step: Step) -> Matches:
        """The match with the class weight of the stage."""
        return super().match(self.with_weights(step))

    def losses(self, step: Step) -> dict[str, Term]:
        """The basic terms; the class loss is the mean over queries and columns, times a factor."""
        terms = super().losses(self.with_weights(step))
        num_queries = step.student.class_logits.shape[2]
        num_columns = step.stage.seen.sum() + 1  # Those of classes to come have no loss.
        loss = terms['class']
        mean = loss.sum / (num_queries * num_columns)
        return terms | {'class': Term(CLASS_FACTOR * mean, loss.weight)}

    def with_weights(self, step: Step) -> Step:
        """The step with the class weight of the stage."""
        if not is_later(step):
            return step
        weights = dataclasses.replace(step.weights, classification=self.later_class_weight)
        return step.replace(weights=weights)

    def class_logits(self, predictions: Predictions, seen: Array | None) -> Array:
        """The logits with which the queries of a stage name the classes of that stage only."""
        logits, stage_of = predictions.class_logits[-1], predictions.stages
        queries, classes = stage_of.queries, stage_of.classes
        seen = jnp.ones(len(classes), bool) if seen is None else seen
        deltas = jnp.asarray(self.deltas or (0.0,))
        deltas = deltas[jnp.minimum(queries, len(deltas) - 1)]
        own = queries[:, None] == classes
        has_prompts = (seen & (classes > 0)).any()
        logits = jnp.where(has_prompts, manipulated(logits, own, deltas), logits)
        # Queries of stages to come see nothing.
        allowed = seen & (own & seen).any(axis=1, keepdims=True)
        return without_unseen(logits, allowed)


def is_later(step: Step) -> bool:
    """Whether the step is of a later stage, which does not train the queries of the first."""
    return 'learned_queries/features' in step.frozen


def manipulated(logits: Array, own: Array, deltas: Array) -> Array:
    """Logits [B, N, C + 1] in which queries are kept from classes of other stages.

    Args:
        logits: [B, N, C + 1] of the independent head.
        own: [N, C] bool, the classes of the stage of each query.
        deltas: [N] how "no object" is found, see `ECLIPSE.deltas`.
    """
    p, deltas = jax.nn.sigmoid(logits), deltas[:, None]
    others = jnp.where(own, 0.0, p[..., :-1]).sum(axis=-1, keepdims=True)
    absent = jnp.where(deltas > 0, deltas * jnp.minimum(others, 1.0), -deltas * p[..., -1:])
    absent = jnp.clip(absent, LEAST, 1 - LEAST)
    absent = jnp.log(absent / (1 - absent))
    classes = jnp.where(own, logits[..., :-1], OTHER_STAGE)
    return jnp.concatenate([classes, jnp.where(deltas == 0, logits[..., -1:], absent)], axis=-1)
