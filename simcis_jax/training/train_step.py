"""The train state and the train step, a pure function shared by all methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from simcis_jax.losses.matcher import LossWeights
from simcis_jax.losses.segmentation import PointSampling, match_targets, segmentation_losses
from simcis_jax.methods.base import Memory, Method
from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.runtime import parallel
from simcis_jax.settings import OptimizerSettings
from simcis_jax.training import accumulation
from simcis_jax.training.optimizer import learning_rate, make_optimizer
from simcis_jax.types import Batch, Predictions, StageArrays, Targets

# Independent random streams per image.
MATCHING, SAMPLING, REPLAY = range(3)


@flax.struct.dataclass
class TrainState:
    """Everything that a train step changes."""

    step: Array  # [] int32, number of finished steps of this stage.
    params: Any
    opt_state: Any
    memory: Memory
    key: Array  # Random key of the stage.
    skipped: Array  # [] int32, steps of this stage that were skipped as non-finite.


def image_keys(key: Array, step: Array, rows: Array, stream: int) -> Array:
    """Random keys [B] of the images at rows [B] of the global batch, for one stream."""
    key = jax.random.fold_in(jax.random.fold_in(key, step), stream)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def merged_targets(
    teacher: Predictions | None, targets: Targets, stage: StageArrays, method: Method
) -> Targets:
    """The targets of the method, without gradient; the ground truth if there is no teacher."""
    if teacher is None:
        return targets
    return jax.lax.stop_gradient(method.targets(targets, teacher, stage))


def teacher_predictions(
    model: Mask2Former, teacher_params: Any, batch: Batch, stage: StageArrays, mask_unseen: bool
) -> Predictions | None:
    """The teacher's predictions for a batch, without gradient; None if there is no teacher.

    The teacher was trained on the past classes; with `mask_unseen`, only these select its queries.
    """
    if teacher_params is None:
        return None
    selecting = stage.past if mask_unseen else None
    return jax.lax.stop_gradient(model.apply({'params': teacher_params}, batch.image, selecting))


def make_train_step(
    model: Mask2Former,
    method: Method,
    mesh: Mesh,
    *,
    weights: LossWeights,
    sampling: PointSampling,
    optimizer: OptimizerSettings,
    mask_unseen: bool = True,
    num_microbatches: int = 1,
) -> Callable[[TrainState, Any, Batch, StageArrays], tuple[TrainState, dict[str, Array]]]:
    """Compiles `step(state, teacher_params, batch, stage) -> (state, metrics)`.

    `teacher_params` is None in the first stage, so a run compiles the step twice. The global batch
    is sharded over the mesh; everything else is replicated. The state is donated. If a metric is
    not finite, the step leaves parameters, optimizer state and memory unchanged.

    Args:
        model: the network of both student and teacher.
        method: the continual method.
        mesh: the device mesh.
        weights: weights of the loss terms.
        sampling: how points on masks are sampled for the losses.
        optimizer: settings of AdamW and its schedule.
        mask_unseen: whether only seen classes select queries; in the published code all do.
        num_microbatches: gradient accumulation steps per device, to save memory.
    """

    def step(state: TrainState, teacher_params: Any, batch: Batch, stage: StageArrays):
        num_images = batch.image.shape[0]
        batch_size = num_images * mesh.size
        rows = parallel.first_row(num_images) + jnp.arange(num_images)

        def add_targets(batch: Batch) -> tuple[Predictions | None, Targets]:
            teacher = teacher_predictions(model, teacher_params, batch, stage, mask_unseen)
            return teacher, merged_targets(teacher, batch.targets, stage, method)

        # The number of targets in the global batch normalises the losses, so it is computed first.
        microbatches = accumulation.split((batch, rows), num_microbatches)
        teachers, targets = accumulation.map_microbatches(add_targets, microbatches[0])
        num_targets = jax.lax.psum(jnp.sum(targets.valid), parallel.AXIS)

        def loss_fn(params, batch, rows, teacher, targets):
            def keys(stream):
                return image_keys(state.key, state.step, rows, stream)

            virtual = None
            if teacher is not None:
                virtual = method.virtual_queries(state.memory, stage, keys(REPLAY))
            replay = teacher is not None and method.replays_teacher_queries
            # All seen classes select queries of the student.
            student = model.apply(
                {'params': params},
                batch.image,
                stage.seen if mask_unseen else None,
                None if virtual is None else virtual.queries,
                scored_positions=None if teacher is None else teacher.selection.positions,
                replay_positions=teacher.selection.positions if replay else None,
            )
            student, replayed = student if replay else (student, None)
            matches = match_targets(
                student,
                targets,
                keys(MATCHING),
                weights=weights,
                num_points=sampling.num_points,
            )
            terms = segmentation_losses(
                student,
                targets,
                matches,
                keys(SAMPLING),
                virtual_labels=None if virtual is None else virtual.labels,
                sampling=sampling,
            )
            normaliser = jnp.maximum(num_targets, 1)
            terms = {name: term / normaliser for name, term in terms.items()}
            weight_of = weights.by_term()
            weighted = sum(weight_of[name] * term.sum() for name, term in terms.items())
            extra = {} if teacher is None else method.losses(student, replayed, teacher)
            extra = {name: term / batch_size for name, term in extra.items()}
            total = weighted + sum(extra.values())
            # Log the terms of the last layer, which are comparable across numbers of layers.
            metrics = {name: term[-1] for name, term in terms.items()} | extra
            metrics |= {'total': total, 'nonfinite_costs': matches.num_nonfinite}
            return total, (metrics, method.stored_queries(student, targets, matches))

        def gradients_of(microbatch):
            gradients, (metrics, stored) = jax.grad(loss_fn, has_aux=True)(
                state.params, *microbatch
            )
            return (gradients, metrics), stored

        sums, stored = accumulation.accumulate(gradients_of, (*microbatches, teachers, targets))
        gradients, metrics = jax.lax.psum(sums, parallel.AXIS)
        rate = learning_rate(state.step, stage.num_steps, stage.learning_rate, optimizer)
        updates, opt_state = make_optimizer(state.params, optimizer).update(
            gradients, state.opt_state, state.params
        )
        params = optax.apply_updates(state.params, jax.tree.map(lambda u: rate * u, updates))

        metrics |= {
            'dropped_segments': jax.lax.psum(jnp.sum(targets.dropped), parallel.AXIS),
            'learning_rate': rate,
            'gradient_norm': optax.tree.norm(gradients),
            'targets': num_targets / batch_size,
        }
        finite = jnp.stack([jnp.isfinite(value) for value in metrics.values()]).all()
        skipped = state.skipped + jnp.int32(~finite)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        memory = state.memory
        if stored is not None:
            queries, labels = jax.tree.map(parallel.gather_rows, accumulation.join(stored))
            # Storing nothing keeps the memory; choosing between two memories would copy it.
            labels = jnp.where(finite, labels, -1)
            memory = method.update_memory(memory, queries, labels)
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            memory=memory,
            skipped=skipped,
        )
        return state, metrics | {'skipped_steps': skipped}

    everywhere, split = parallel.REPLICATED, parallel.SPLIT
    return parallel.map_over_devices(
        step,
        mesh,
        in_specs=(everywhere, everywhere, split, everywhere),
        out_specs=(everywhere, everywhere),
        donate=(0,),
    )


def make_statistics_step(
    model: Mask2Former, method: Method, mesh: Mesh, *, mask_unseen: bool = True
) -> Callable[[Any, Batch, Array, StageArrays], Any]:
    """Compiles `statistics(teacher_params, batch, real, stage)`: `Method.statistics` of a batch.

    `real` [B] bool is False for padding rows of the batch, which are not counted. As in the train
    step, with `mask_unseen` only past classes select queries of the teacher.
    """

    def statistics(teacher_params: Any, batch: Batch, real: Array, stage: StageArrays):
        teacher = teacher_predictions(model, teacher_params, batch, stage, mask_unseen)
        targets = merged_targets(teacher, batch.targets, stage, method)
        targets = targets.replace(labels=jnp.where(real[:, None], targets.labels, -1))
        return jax.lax.psum(method.statistics(targets, stage), parallel.AXIS)

    everywhere, split = parallel.REPLICATED, parallel.SPLIT
    return parallel.map_over_devices(
        statistics, mesh, in_specs=(everywhere, split, split, everywhere), out_specs=everywhere
    )
