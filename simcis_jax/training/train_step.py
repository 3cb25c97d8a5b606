"""The train step, a pure function shared by all methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from simcis_jax.losses.segmentation import PointSampling
from simcis_jax.losses.weights import LossWeights
from simcis_jax.methods.base import Method
from simcis_jax.methods.step import Step
from simcis_jax.runtime import parallel
from simcis_jax.settings.keys import OptimizerSettings
from simcis_jax.training import accumulation
from simcis_jax.training.optimizer import learning_rate, make_optimizer, without_gradient
from simcis_jax.types import Batch, Predictions, StageArrays, TrainState


def teacher_predictions(step: Step, teacher_params: Any) -> Predictions | None:
    """The teacher's predictions for a batch, without gradient; None if there is no teacher.

    The teacher was trained on the past classes; with `mask_unseen`, it knows only these.
    """
    if teacher_params is None:
        return None
    selecting = step.stage.past if step.mask_unseen else None
    teacher = step.model.apply({'params': teacher_params}, step.batch.image, selecting)
    return jax.lax.stop_gradient(teacher)


def with_targets(step: Step, method: Method, teacher_params: Any) -> Step:
    """The step with the teacher's predictions and the targets of the method, without gradient."""
    step = step.replace(teacher=teacher_predictions(step, teacher_params))
    return step.replace(targets=jax.lax.stop_gradient(method.targets(step)))


def make_train_step(
    model: nn.Module,
    method: Method,
    mesh: Mesh,
    *,
    weights: LossWeights,
    sampling: PointSampling,
    optimizer: OptimizerSettings,
    mask_unseen: bool = True,
    num_microbatches: int = 1,
    frozen: frozenset[str] = frozenset(),
) -> Callable[[TrainState, Any, Batch, StageArrays], tuple[TrainState, dict[str, Array]]]:
    """Compiles `step(state, teacher_params, batch, stage) -> (state, metrics)`.

    `teacher_params` is None in the first stage. Later stages share a compiled program if they train
    the same parameters. The global batch is sharded over the mesh; everything else is replicated.
    The state is donated. If a metric is not finite, the step leaves parameters, optimizer state and
    memory unchanged.

    Args:
        model: the network of both student and teacher.
        method: the continual method.
        mesh: the device mesh.
        weights: weights of the loss terms.
        sampling: how points on masks are sampled for the losses.
        optimizer: settings of AdamW and its schedule.
        mask_unseen: whether only seen classes select queries and compete in the softmax head.
        num_microbatches: gradient accumulation steps per device, to save memory.
        frozen: paths of the parameters that the method does not train.
    """

    def step(state: TrainState, teacher_params: Any, batch: Batch, stage: StageArrays):
        num_images = batch.image.shape[0]
        start = Step(
            model=model,
            weights=weights,
            sampling=sampling,
            mask_unseen=mask_unseen,
            frozen=frozen,
            stage=stage,
            memory=state.memory,
            key=jax.random.fold_in(state.key, state.step),
        )

        # Losses are divided by sums over the global batch, so these are computed first.
        def prepare(part):
            batch, rows = part
            step = with_targets(start.replace(batch=batch, rows=rows), method, teacher_params)
            return method.totals(step), (step.teacher, step.targets)

        rows = parallel.first_row(num_images) + jnp.arange(num_images)
        parts = accumulation.split((batch, rows), num_microbatches)
        totals, prepared = accumulation.accumulate(prepare, parts)
        totals = jax.lax.psum(totals, parallel.AXIS)
        # The teacher is done before the student begins: both at once would need more memory.
        current, parts, prepared = jax.lax.optimization_barrier((state.params, parts, prepared))

        def loss_fn(params, part, prepared):
            (batch, rows), (teacher, targets) = part, prepared
            step = start.replace(
                batch=batch,
                rows=rows,
                teacher=teacher,
                targets=targets,
                totals=totals,
                params=without_gradient(params, frozen),
            )
            step = step.replace(virtual=method.virtual_queries(step))
            step = step.replace(student=method.predict(step))
            step = step.replace(matches=method.match(step))
            terms = method.losses(step)
            losses = {
                name: term.sum / jnp.where(totals[term.per] > 0, totals[term.per], 1)
                for name, term in terms.items()
            }
            total = sum(terms[name].weight * loss.sum() for name, loss in losses.items())
            # Log the terms of the last layer, which are comparable across numbers of layers.
            metrics = {name: jnp.ravel(loss)[-1] for name, loss in losses.items()}
            metrics |= {'total': total, 'nonfinite_costs': step.matches.num_nonfinite}
            return total, (metrics, method.store(step))

        def gradients_of(part):
            gradients, (metrics, stored) = jax.grad(loss_fn, has_aux=True)(current, *part)
            return (gradients, metrics), stored

        sums, stored = accumulation.accumulate(gradients_of, (parts, prepared))
        gradients, metrics = jax.lax.psum(sums, parallel.AXIS)
        rate = learning_rate(state.step, stage.num_steps, stage.learning_rate, optimizer)
        updates, opt_state = make_optimizer(state.params, optimizer, frozen).update(
            gradients, state.opt_state, state.params
        )
        params = optax.apply_updates(state.params, jax.tree.map(lambda u: rate * u, updates))

        _, targets = prepared
        metrics |= {
            'dropped_segments': jax.lax.psum(jnp.sum(targets.dropped), parallel.AXIS),
            'learning_rate': rate,
            'gradient_norm': optax.tree.norm(gradients),
            'targets': totals['target'] / totals['image'],
        }
        finite = jnp.stack([jnp.isfinite(value) for value in metrics.values()]).all()
        skipped = state.skipped + jnp.int32(~finite)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        stored = jax.tree.map(parallel.gather_rows, accumulation.join(stored))
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            memory=method.update_memory(state.memory, stored, finite),
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
    model: nn.Module, method: Method, mesh: Mesh, *, mask_unseen: bool = True
) -> Callable[[Any, Batch, Array, StageArrays], Any]:
    """Compiles `statistics(teacher_params, batch, real, stage)`: `Method.statistics` of a batch.

    `real` [B] bool is False for padding rows of the batch, which are not counted. As in the train
    step, with `mask_unseen` the teacher knows only the past classes.
    """

    def statistics(teacher_params: Any, batch: Batch, real: Array, stage: StageArrays):
        start = Step(model=model, mask_unseen=mask_unseen, stage=stage, batch=batch)
        step = with_targets(start, method, teacher_params)
        labels = jnp.where(real[:, None], step.targets.labels, -1)
        step = step.replace(targets=step.targets.replace(labels=labels))
        return jax.lax.psum(method.statistics(step), parallel.AXIS)

    everywhere, split = parallel.REPLICATED, parallel.SPLIT
    return parallel.map_over_devices(
        statistics, mesh, in_specs=(everywhere, split, split, everywhere), out_specs=everywhere
    )
