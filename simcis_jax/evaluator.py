"""Evaluation of a model on the classes seen so far: predict, count, and keep some pictures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from simcis_jax import parallel
from simcis_jax.data.pipeline import EvaluationBatch, evaluation_batches
from simcis_jax.data.source import Source, images_with
from simcis_jax.evaluation import panoptic_quality, pictures
from simcis_jax.evaluation.panoptic_quality import PQCounts
from simcis_jax.evaluation.postprocess import (
    PanopticSegmentation,
    panoptic_inference,
    resized_masks,
)
from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.progress import Progress
from simcis_jax.settings import EvaluationSettings

# Originals are padded to multiples of this, so that similar sizes share one compiled function.
OUTPUT_MULTIPLE = 32


def make_predictor(
    model: Mask2Former,
    mesh: Mesh,
    *,
    is_thing: Sequence[bool],
    object_mask_threshold: float,
    overlap_threshold: float,
) -> Callable[..., PanopticSegmentation]:
    """Compiles `predict(params, seen, image, size, original_size, output_shape=)`.

    Images [B, Hp, Wp, 3], valid up to `size` [B, 2], become segment maps [B, *output_shape] that
    are valid up to `original_size` [B, 2]. The batch is split over the mesh.
    """
    is_thing = jnp.asarray(is_thing)

    def predict(output_shape, params, seen, image, size, original_size):
        predictions = model.apply({'params': params}, image, seen, size=size)

        def one(logits, masks, size, original_size):
            masks = resized_masks(
                masks,
                padded_size=image.shape[1:3],
                size=size,
                original_size=original_size,
                output_shape=output_shape,
            )
            return panoptic_inference(
                logits,
                masks,
                is_thing=is_thing,
                seen=seen,
                object_mask_threshold=object_mask_threshold,
                overlap_threshold=overlap_threshold,
            )

        images = (predictions.class_logits[-1], predictions.mask_logits(-1), size, original_size)
        return jax.lax.map(lambda x: one(*x), images)

    @functools.cache
    def compiled(output_shape):
        everywhere, split = parallel.REPLICATED, parallel.SPLIT
        return parallel.map_over_devices(
            functools.partial(predict, output_shape),
            mesh,
            in_specs=(everywhere, everywhere, split, split, split),
            out_specs=split,
        )

    def call(params: Any, seen: Array | None, batch: EvaluationBatch) -> PanopticSegmentation:
        output_shape = tuple(
            -(-int(side) // OUTPUT_MULTIPLE) * OUTPUT_MULTIPLE
            for side in batch.original_size.max(axis=0)
        )
        inputs = parallel.put_batch(mesh, (batch.image, batch.size, batch.original_size))
        return compiled(output_shape)(params, seen, *inputs)

    return call


def evaluate(
    predict: Callable[..., PanopticSegmentation],
    params: Any,
    source: Source,
    seen: np.ndarray,
    settings: EvaluationSettings,
    *,
    mask_unseen: bool = True,
    progress: Progress | None = None,
) -> tuple[PQCounts, np.ndarray]:
    """PQ counts over the images that hold a seen class, and a picture of some of them.

    Ground truth of classes not seen yet is neither missed nor void: what is predicted there counts
    as wrong, as in the published results.

    Args:
        predict: of `make_predictor`.
        params: of the model.
        source: images and ground truth.
        seen: [C] bool.
        settings: sizes and batch.
        mask_unseen: predict seen classes only.
        progress: told about every batch.
    """
    num_classes = len(source.categories)
    indices = images_with(source, np.flatnonzero(seen))
    batches = evaluation_batches(
        source,
        indices,
        batch_size=settings.batch_size,
        short_side=settings.short_side,
        max_side=settings.max_side,
    )
    counts, rows, shown = PQCounts.zeros(num_classes), [], set()
    # Pictures from all over the data set: neighbours are often frames of one video.
    every = max(1, len(indices) // max(1, settings.num_pictures))
    num_counted = 0
    for batch in batches:
        output = jax.device_get(predict(params, jnp.asarray(seen) if mask_unseen else None, batch))
        for i, example in enumerate(batch.examples):
            height, width = example.segment_map.shape
            segment_map = output.segment_map[i, :height, :width]
            counts += panoptic_quality.count(
                segment_map,
                output.labels[i],
                example.segment_map,
                example.labels,
                example.crowd,
                num_classes,
                evaluated=seen,
            )
            num_counted += 1
            if num_counted % every == 0 and len(rows) < settings.num_pictures:
                known = np.where(seen[example.labels], example.labels, -1)
                draw = functools.partial(pictures.overlay, categories=source.categories)
                rows.append(
                    (
                        draw(example.image, np.zeros_like(segment_map), []),
                        draw(example.image, example.segment_map, known),
                        draw(example.image, segment_map, output.labels[i]),
                    )
                )
                shown |= set(known) | set(output.labels[i])
        if progress is not None:
            progress.advance(len(batch.examples))
    legend = pictures.legend(sorted(shown), source.categories)
    return counts, pictures.grid(rows, legend=legend)
