"""Compiled inference: images -> class and mask logits -> one result per task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax import Array
from jax.sharding import Mesh

from simcis_jax.data.evaluation_batches import EvaluationBatch
from simcis_jax.evaluation.postprocess import resized_masks
from simcis_jax.evaluation.tasks import ImagePredictions, Task
from simcis_jax.methods.base import Method
from simcis_jax.model.mask_kinds import sigmoid_logits
from simcis_jax.runtime import parallel
from simcis_jax.runtime.compilation import shared


def run_network(
    model: nn.Module, method: Method, params: Any, seen: Array | None, image: Array, size: Array
) -> tuple[Array, Array]:
    """Class and mask logits of the last layer, for images [B, Hp, Wp, 3] of `size` [B, 2]."""
    predictions = model.apply({'params': params}, image, seen, size=size)
    return method.class_logits(predictions, seen), predictions.mask_logits(-1)


def run_tasks(
    tasks: Sequence[Task],
    model: nn.Module,
    padded: tuple[int, int],
    canvas: tuple[int, int],
    seen: Array | None,
    *images: Array,
) -> tuple:
    """One result per task, as arrays [B, *canvas, ...].

    Args:
        tasks: what to compute from the logits.
        model: the network, which tells the kind of its class head and masks.
        padded: height and width of the network's input.
        canvas: height and width of the results.
        seen: [C] bool, classes that may be predicted; None = all.
        *images: class logits [B, Q, C] and mask logits [B, Q, h, w]; height and width of each image
            in the input, and those of its result in the canvas, [B, 2] int32.
    """

    def one(class_logits, coarse_masks, size, original_size):
        masks = resized_masks(
            coarse_masks,
            padded_size=padded,
            size=size,
            original_size=original_size,
            output_shape=canvas,
        )
        predictions = ImagePredictions(
            class_logits,
            coarse_masks,
            sigmoid_logits(masks, model.masks),
            size,
            original_size,
            padded,
            model.head,
            model.masks,
        )
        return tuple(task.infer(predictions, seen) for task in tasks)

    return jax.lax.map(lambda image: one(*image), images)  # One at a time: masks are large.


def make_network(
    model: nn.Module, mesh: Mesh, method: Method
) -> Callable[..., tuple[Array, Array]]:
    """Compiles `network(params, seen, image, size)`: class and mask logits of the last layer."""

    everywhere, split = parallel.REPLICATED, parallel.SPLIT
    return parallel.map_over_devices(
        functools.partial(run_network, model, method),
        mesh,
        in_specs=(everywhere, everywhere, split, split),
        out_specs=split,
    )


def make_predictor(
    model: nn.Module, mesh: Mesh, tasks: Sequence[Task], method: Method
) -> Callable[[Any, Array | None, EvaluationBatch], tuple]:
    """Compiles `predict(params, seen, batch)`: one result per task, as arrays [B, *canvas, ...].

    The network is compiled once per padded shape. Post-processing, which compiles much faster, is
    compiled once per padded shape and canvas. The batch is split over the mesh. Only classes `seen`
    [C] bool are predicted; None = all.
    """
    everywhere, split = parallel.REPLICATED, parallel.SPLIT
    network = shared(make_network, model, mesh, method)

    @functools.cache
    def inference(padded, canvas):
        return parallel.map_over_devices(
            functools.partial(run_tasks, tasks, model, padded, canvas),
            mesh,
            in_specs=(everywhere, split, split, split, split),
            out_specs=split,
        )

    def predict(params: Any, seen: Array | None, batch: EvaluationBatch) -> tuple:
        arrays = (batch.image, batch.size, batch.original_size)
        image, size, original_size = parallel.put_batch(mesh, arrays)
        logits = network(params, seen, image, size)
        return inference(image.shape[1:3], batch.canvas)(seen, *logits, size, original_size)

    return predict
