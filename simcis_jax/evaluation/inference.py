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
from simcis_jax.runtime import parallel
from simcis_jax.runtime.compilation import shared


def make_network(
    model: nn.Module, mesh: Mesh, method: Method
) -> Callable[..., tuple[Array, Array]]:
    """Compiles `network(params, seen, image, size)`: class and mask logits of the last layer."""

    def network(params, seen, image, size):
        predictions = model.apply({'params': params}, image, seen, size=size)
        return method.class_logits(predictions, seen), predictions.mask_logits(-1)

    everywhere, split = parallel.REPLICATED, parallel.SPLIT
    return parallel.map_over_devices(
        network, mesh, in_specs=(everywhere, everywhere, split, split), out_specs=split
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

    def infer(padded, canvas, seen, *images):
        def one(class_logits, coarse_masks, size, original_size):
            masks = resized_masks(
                coarse_masks,
                padded_size=padded,
                size=size,
                original_size=original_size,
                output_shape=canvas,
            )
            predictions = ImagePredictions(
                class_logits, coarse_masks, masks, size, original_size, padded, model.head
            )
            return tuple(task.infer(predictions, seen) for task in tasks)

        return jax.lax.map(lambda image: one(*image), images)  # One at a time: masks are large.

    @functools.cache
    def inference(padded, canvas):
        return parallel.map_over_devices(
            functools.partial(infer, padded, canvas),
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
