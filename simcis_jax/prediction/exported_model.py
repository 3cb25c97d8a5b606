"""Exports a trained model, program and weights, as one file that runs without this package."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from simcis_jax.data import Shapes
from simcis_jax.data.augment import resize_image
from simcis_jax.data.category_list import category_entries
from simcis_jax.data.evaluation_batches import EvaluationBatch, pad_batch
from simcis_jax.errors import FileError, InputError
from simcis_jax.evaluation.evaluator import make_tasks
from simcis_jax.evaluation.inference import BatchPredictor, run_network, run_tasks
from simcis_jax.model.backbones import coarsest_stride
from simcis_jax.prediction.platform_programs import PLATFORMS, join_platforms
from simcis_jax.prediction.trained_model import TrainedModel
from simcis_jax.runtime import parallel
from simcis_jax.runtime.files import replacing, write_atomically

# Programs compiled from a file and in place may round differently, which moves edges of segments.
LEAST_AGREEMENT = 0.99


def export_model(
    model: TrainedModel,
    out: str | Path,
    *,
    platforms: Sequence[str] = ('cpu', 'cuda', 'tpu'),
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 1,
) -> str:
    """Writes a model as a file of `jax.export`, and its categories beside it, as OUT.json.

    The function in the file takes images [B, H, W, 3] uint8, RGB, padded at the bottom and right,
    and their heights and widths without padding [B, 2] int32. It returns a dict: `segment_map`
    [B, H, W] int32, 0 = nothing, k = segment k; `labels` [B, Q] int32, the class of segment k at
    k - 1 as a position in the list of categories, -1 = no segment; `scores` [B, Q] float32.

    The file is read again and, if it is for the platform of this process, compared with the
    prediction of this package before it takes the place of an old one.

    Args:
        model: the result of `load_model`.
        out: file to write.
        platforms: what the file can run on, of `PLATFORMS`.
        height: H; None = evaluation.short_side, rounded up to a multiple of evaluation.padding.
        width: W; None = the same.
        batch_size: B.

    Returns:
        One line that says what was written, and what was compared.

    Raises:
        InputError: a platform is unknown, or the network cannot take such a size.
        FileError: a file cannot be written.
    """
    platforms = check_platforms(platforms)
    shape = _batch_shape(model, height, width, batch_size)
    out = Path(out)
    if out.is_dir():
        raise FileError(f'--out={out} is a folder, but a file is written; add a name.')
    model = model._replace(
        params=jax.device_get(model.params),
        evaluation=dataclasses.replace(model.evaluation, tasks=('panoptic',)),
    )
    with replacing(out) as part:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()  # Reports a path that cannot be written before the work.
        part.write_bytes(export_program(model, shape, platforms).serialize())
        compared = _compare(model, jax.export.deserialize(bytearray(part.read_bytes())))
    entries = {'categories': category_entries(model.categories)}
    write_atomically(out.with_name(f'{out.name}.json'), json.dumps(entries, indent=2))
    size = out.stat().st_size / 2**20
    words = f'{batch_size} x {shape[1]} x {shape[2]} pixels'
    return f'{out}: {size:.1f} MiB for {", ".join(platforms)}; {words}; {compared}'


def check_platforms(platforms: Sequence[str]) -> tuple[str, ...]:
    """The platforms, each once.

    Raises:
        InputError: one is unknown.
    """
    for platform in platforms:
        if platform not in PLATFORMS:
            raise InputError(
                f'--platforms: {platform!r} is unknown; give one or several of '
                f'{", ".join(PLATFORMS)}, separated by commas.'
            )
    return tuple(dict.fromkeys(platforms))


def export_program(
    model: TrainedModel, shape: tuple[int, int, int], platforms: Sequence[str]
) -> jax.export.Exported:
    """The function that `export_model` writes, for images [B, H, W, 3] of `shape` B, H, W.

    The parameters are constants that the programs of all platforms share.
    """
    tasks = tuple(make_tasks(model.categories, model.evaluation).values())
    padded, overlap = shape[1:], model.evaluation.duplicate_overlap

    def segment(params: Any, image: Array, size: Array) -> dict[str, Array]:
        logits = run_network(model.network, model.method, overlap, params, model.seen, image, size)
        (panoptic,) = run_tasks(
            tasks, model.network, padded, padded, model.seen, *logits, size, size
        )
        return {
            'segment_map': panoptic.segment_map,
            'labels': panoptic.labels,
            'scores': panoptic.scores,
        }

    arguments = (
        model.params,
        jax.ShapeDtypeStruct((*shape, 3), jnp.uint8),
        jax.ShapeDtypeStruct((shape[0], 2), jnp.int32),
    )
    program = jax.jit(segment)
    call = join_platforms(
        {
            platform: jax.export.export(program, platforms=[platform])(*arguments)
            for platform in platforms
        }
    )
    chosen = jax.jit(lambda image, size: call(model.params, image, size))
    return jax.export.export(chosen, platforms=platforms)(*arguments[1:])


def _batch_shape(
    model: TrainedModel, height: int | None, width: int | None, batch_size: int
) -> tuple[int, int, int]:
    if batch_size < 1:
        raise InputError(f'--batch_size={batch_size} must be at least 1.')
    padding = model.evaluation.padding
    default = -(-model.evaluation.short_side // padding) * padding
    stride = coarsest_stride(model.network.backbone)
    for name, side in (('height', height), ('width', width)):
        if side is not None and (side < 1 or side % stride):
            nearest = max(1, round(side / stride)) * stride
            raise InputError(
                f'--{name}={side} must be a multiple of {stride}, the coarsest stride of '
                f'{model.network.backbone}; {nearest} is the nearest.'
            )
    return batch_size, default if height is None else height, default if width is None else width


def _compare(model: TrainedModel, exported: jax.export.Exported) -> str:
    """Compares an exported model with the prediction of this package; says in words how.

    Raises:
        RuntimeError: they differ.
    """
    platform = jax.export.default_export_platform()
    if platform not in exported.platforms:
        return f'loaded again, and not compared, because this process runs on {platform}'
    mesh = parallel.mesh_of(jax.local_devices()[:1])
    tasks = tuple(make_tasks(model.categories, model.evaluation).values())
    overlap = model.evaluation.duplicate_overlap
    predict = BatchPredictor(model.network, mesh, tasks, model.method, overlap)
    params = parallel.put_replicated(mesh, model.params)
    call = jax.jit(exported.call)
    agreements, num_segments = [], 0
    for batch in _pictures(exported.in_avals[0].shape):
        (expected,) = jax.device_get(predict(params, model.seen, batch))
        found = jax.device_get(call(batch.image, batch.size))
        same = _classes(expected.segment_map, expected.labels) == _classes(
            found['segment_map'], found['labels']
        )
        rows, columns = batch.size[0]  # All have the same size; there is no class beyond it.
        agreements += [float(same[:, :rows, :columns].mean())]
        num_segments += int((expected.labels >= 0).sum())
    agreement = min(agreements)
    words = f'on {platform}, {agreement:.2%} of the pixels have the same class'
    if agreement < LEAST_AGREEMENT:
        raise RuntimeError(f'the exported model differs from the model: {words}.')
    return f'loaded again, {words} as in prediction, with {num_segments} segments'


def _pictures(shape: Sequence[int]) -> list[EvaluationBatch]:
    """A batch of pictures of the built-in data without padding, and one of smaller pictures."""
    batch_size, height, width, _ = shape
    source = Shapes('val', size=64, num_images=batch_size)
    pictures = [source[row].image for row in range(batch_size)]
    return [
        pad_batch(
            [resize_image(picture, *size) for picture in pictures],
            [size] * batch_size,
            padded=(height, width),
            canvas=(height, width),
            batch_size=batch_size,
        )
        for size in ((height, width), (height * 3 // 4, width // 2))
    ]


def _classes(segment_map: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The class of every pixel [B, H, W]; -1 = none."""
    none = np.full((len(labels), 1), -1)
    return np.stack(
        [row[ids] for row, ids in zip(np.hstack([none, labels]), segment_map, strict=True)]
    )
