"""Compiled inference: images -> class and mask logits -> one result per task."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding

from simcis_jax.data.evaluation_batches import EvaluationBatch, PlannedBatch
from simcis_jax.evaluation.postprocess import resized_masks
from simcis_jax.evaluation.tasks import ImagePredictions, Task
from simcis_jax.methods.base import Method
from simcis_jax.model.duplicates import merge_duplicates
from simcis_jax.model.mask_logits import sigmoid_logits
from simcis_jax.runtime import parallel
from simcis_jax.runtime.compilation import shared


def run_network(
    model: nn.Module,
    method: Method,
    duplicate_overlap: float,
    params: Any,
    seen: Array | None,
    image: Array,
    size: Array,
) -> tuple[Array, Array]:
    """Class and mask logits of the last layer, for images [B, Hp, Wp, 3] of `size` [B, 2].

    Duplicates are merged, see `model.duplicates`, unless `duplicate_overlap` is 1.
    """
    predictions = model.apply({'params': params}, image, seen, size=size)
    class_logits, mask_logits = method.class_logits(predictions, seen), predictions.mask_logits(-1)
    if duplicate_overlap < 1:
        merge = functools.partial(
            merge_duplicates, overlap=duplicate_overlap, head=model.head, masks=model.masks
        )
        class_logits = jax.vmap(merge, in_axes=(0, 0, None))(class_logits, mask_logits, seen)
    return class_logits, mask_logits


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
    model: nn.Module, mesh: Mesh, method: Method, duplicate_overlap: float
) -> Callable[..., tuple[Array, Array]]:
    """Compiles `network(params, seen, image, size)`: class and mask logits of the last layer."""

    everywhere, split = parallel.REPLICATED, parallel.SPLIT
    return parallel.map_over_devices(
        functools.partial(run_network, model, method, duplicate_overlap),
        mesh,
        in_specs=(everywhere, everywhere, split, split),
        out_specs=split,
    )


class BatchPredictor:
    """`predict(params, seen, batch)`: one result per task, as arrays [B, *canvas, ...].

    The network is compiled once per padded shape. Post-processing, which compiles much faster, is
    compiled once per padded shape and canvas. The batch is split over the mesh. Only classes `seen`
    [C] bool are predicted; None = all. Duplicates are merged unless `duplicate_overlap` is 1.
    """

    def __init__(
        self,
        model: nn.Module,
        mesh: Mesh,
        tasks: Sequence[Task],
        method: Method,
        duplicate_overlap: float,
    ):
        self._model, self._mesh, self._tasks = model, mesh, tasks
        self._network = shared(make_network, model, mesh, method, duplicate_overlap)
        self._make_inference = functools.cache(self._make_inference)
        self._compiled = {}  # Programs that were compiled ahead, as futures.

    def __call__(self, params: Any, seen: Array | None, batch: EvaluationBatch) -> tuple:
        """Predicts a batch; compiles its shape unless that was done ahead."""
        arrays = (batch.image, batch.size, batch.original_size)
        image, size, original_size = parallel.put_batch(self._mesh, arrays)
        padded = image.shape[1:3]
        network, inference = self._network, self._make_inference(padded, batch.canvas)
        if self._compiled:
            keys = self._keys(params, seen, image.shape[0], padded, batch.canvas)
            network, inference = (
                self._compiled[key].result() if key in self._compiled else function
                for key, function in zip(keys, (network, inference), strict=True)
            )
        logits = network(params, seen, image, size)
        return inference(seen, *logits, size, original_size)

    @contextlib.contextmanager
    def compiling_ahead(
        self, params: Any, seen: Array | None, plan: Sequence[PlannedBatch], num_rows: int
    ) -> Iterator[None]:
        """In this block, threads compile all shapes of a plan, in its order.

        XLA compiles without Python's lock, so batches are predicted meanwhile.

        Args:
            params: as for a prediction.
            seen: as for a prediction.
            plan: the batches.
            num_rows: B, rows of every batch.
        """
        split = NamedSharding(self._mesh, parallel.SPLIT)
        like = functools.partial(jax.ShapeDtypeStruct, sharding=split)
        sizes = like((num_rows, 2), np.int32)

        def network_of(padded):
            image = like((num_rows, *padded, 3), np.uint8)
            return self._network.lower(params, seen, image, sizes).compile()

        def inference_of(padded, canvas, network):
            logits = [like(x.shape, x.dtype) for x in network.result().out_info]
            return self._make_inference(padded, canvas).lower(seen, *logits, sizes, sizes).compile()

        pool = futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        try:
            # The network of a shape is submitted first, so nobody waits for what has not begun.
            for batch in plan:
                shapes = batch.padded, batch.canvas
                of_network, of_inference = self._keys(params, seen, num_rows, *shapes)
                if of_network not in self._compiled:
                    self._compiled[of_network] = pool.submit(network_of, batch.padded)
                if of_inference not in self._compiled:
                    network = self._compiled[of_network]
                    self._compiled[of_inference] = pool.submit(inference_of, *shapes, network)
            yield
        finally:
            pool.shutdown(cancel_futures=True)
            done = {k: f for k, f in self._compiled.items() if not (f.cancelled() or f.exception())}
            self._compiled = done

    def _make_inference(self, padded: tuple[int, int], canvas: tuple[int, int]) -> Callable:
        everywhere, split = parallel.REPLICATED, parallel.SPLIT
        return parallel.map_over_devices(
            functools.partial(run_tasks, self._tasks, self._model, padded, canvas),
            self._mesh,
            in_specs=(everywhere, split, split, split, split),
            out_specs=split,
        )

    def _keys(
        self,
        params: Any,
        seen: Array | None,
        num_rows: int,
        padded: tuple[int, int],
        canvas: tuple[int, int],
    ) -> tuple[tuple, tuple]:
        """The keys of the network and of post-processing; a program fits one placement only."""
        placement = getattr(jax.tree.leaves(params)[0], 'sharding', None)
        of_network = (placement, seen is None, num_rows, padded)
        return of_network, (*of_network, canvas)
