"""Inference: segments images with a trained model."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simcis_jax.data.augment import resize_image, resized_shape
from simcis_jax.data.evaluation_batches import canvas_side, pad_batch
from simcis_jax.errors import InputError
from simcis_jax.evaluation.evaluator import make_tasks
from simcis_jax.evaluation.inference import BatchPredictor
from simcis_jax.methods.base import Method
from simcis_jax.prediction.load_model import load_model
from simcis_jax.runtime import parallel
from simcis_jax.runtime.threads import one_ahead
from simcis_jax.settings.keys import EvaluationSettings
from simcis_jax.types import Categories

# Images that wait for others of their shape, in batches; each is in memory.
MAX_WAITING = 4
# Larger images get results of this size, enlarged afterwards: each query needs a mask that large.
MAX_RESULT_SIDE = 2048


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The segments of one image; they never overlap."""

    segment_map: np.ndarray  # [H, W] int32, the size of the image; 0 = none, k = segment k.
    labels: np.ndarray  # [K] int32, the class of segment k at index k - 1.
    names: tuple[str, ...]  # [K] names of these classes.
    scores: np.ndarray  # [K] float32, class scores in [0, 1].
    label_map: np.ndarray  # [H, W] int32, semantic inference: class of each pixel; -1 = none.


@dataclasses.dataclass(frozen=True)
class PreparedImage:
    """An image and its resized copy, the input of the network."""

    key: Hashable  # Identifies the image for the caller.
    image: np.ndarray  # [H, W, 3] uint8, RGB.
    resized: np.ndarray  # [h, w, 3] uint8
    result_size: tuple[int, int]  # Height and width at which segments are computed.


class Predictor:
    """Segments images; compiles once per padded shape.

    Args:
        params: parameters of the model, replicated on the devices of this process.
        model: the network.
        categories: the classes of the model.
        seen: [C] bool, the classes that may be predicted; None = all of them.
        evaluation: image sizes, thresholds and batch size.
        method: the continual method; None = fine-tuning.
    """

    def __init__(
        self,
        params: Any,
        model: nn.Module,
        categories: Categories,
        seen: np.ndarray | None,
        evaluation: EvaluationSettings,
        method: Method | None = None,
    ):
        mesh = parallel.make_local_mesh()
        self.categories, self.seen, self.evaluation = categories, seen, evaluation
        self.batch_size = -(-evaluation.batch_size // mesh.size) * mesh.size
        self._params = parallel.put_replicated(mesh, params)
        self._seen = None if seen is None else jnp.asarray(seen)
        both = dataclasses.replace(evaluation, tasks=('panoptic', 'semantic'))
        tasks = tuple(make_tasks(categories, both).values())
        overlap = evaluation.duplicate_overlap
        self._predict = BatchPredictor(model, mesh, tasks, method or Method(), overlap)

    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> Any:
        """The `Prediction` of an RGB image [H, W, 3] uint8, or a list of them for a list.

        Raises:
            InputError: an array is not an RGB image [H, W, 3] uint8.
        """
        if isinstance(images, np.ndarray) and images.ndim == 3:
            return self([images])[0]
        prepared = [self.prepare(index, image) for index, image in enumerate(images)]
        predictions = {image.key: prediction for image, prediction in self.predict(prepared)}
        return [predictions[index] for index in range(len(prepared))]

    def prepare(self, key: Hashable, image: np.ndarray) -> PreparedImage:
        """Checks and resizes an image; thread-safe.

        Raises:
            InputError: it is not an RGB image [H, W, 3] uint8.
        """
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(
                f'image {key} is {image.dtype} {list(image.shape)}; a predictor needs RGB images '
                'uint8 [height, width, 3] with values 0 to 255.'
            )
        shape = resized_shape(
            *image.shape[:2],
            short_side=self.evaluation.short_side,
            max_side=self.evaluation.max_side,
        )
        enlarged = max(1.0, max(image.shape) / MAX_RESULT_SIDE)
        result_size = tuple(max(1, round(side / enlarged)) for side in image.shape[:2])
        return PreparedImage(key, image, resize_image(image, *shape), result_size)

    def predict(
        self, images: Iterable[PreparedImage]
    ) -> Iterator[tuple[PreparedImage, Prediction]]:
        """Yields each image with its prediction, in batches of images of the same padded shape.

        The order may differ from that of `images`. While the caller processes the results of a
        batch, the devices compute the next one.
        """
        for members, output in one_ahead(self._start, self._groups(images)):
            yield from self._finish(members, output)

    def _groups(self, images: Iterable[PreparedImage]) -> Iterator[list[PreparedImage]]:
        groups = collections.defaultdict(list)  # The one that has waited longest comes first.
        for image in images:
            padded = self._padded(image)
            groups[padded].append(image)
            if len(groups[padded]) == self.batch_size:
                yield groups.pop(padded)
            elif sum(map(len, groups.values())) == MAX_WAITING * self.batch_size:
                yield groups.pop(next(iter(groups)))
        yield from groups.values()

    def _start(self, members: list[PreparedImage]) -> Any:
        sizes = [member.result_size for member in members]
        batch = pad_batch(
            [member.resized for member in members],
            sizes,
            padded=self._padded(members[0]),
            canvas=tuple(canvas_side(max(sides)) for sides in zip(*sizes, strict=True)),
            batch_size=self.batch_size,
        )
        return self._predict(self._params, self._seen, batch)

    def _finish(
        self, members: list[PreparedImage], output: Any
    ) -> Iterator[tuple[PreparedImage, Prediction]]:
        panoptic, label_maps = jax.device_get(output)
        label_maps = np.where(label_maps < len(self.categories), label_maps, -1)
        for row, member in enumerate(members):
            found = panoptic.labels[row] >= 0  # Padding comes last.
            labels = panoptic.labels[row][found]
            prediction = Prediction(
                segment_map=_as_large(panoptic.segment_map[row], member),
                labels=labels,
                names=tuple(self.categories.names[label] for label in labels),
                scores=panoptic.scores[row][found],
                label_map=_as_large(label_maps[row], member),
            )
            yield member, prediction

    def _padded(self, image: PreparedImage) -> tuple[int, int]:
        padding = self.evaluation.padding
        return tuple(-(-side // padding) * padding for side in image.resized.shape[:2])


def load(
    checkpoint: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    categories: str | Path | None = None,
    **evaluation: Any,
) -> Predictor:
    """Loads the model of a stage, which predicts the classes seen up to that stage.

    Args:
        checkpoint: a folder stage_N of a run or of simcis_jax.convert; or a run's work directory,
            which means its newest finished stage; or a pretrained Mask2Former, a folder of
            transformers or a file of detectron2.
        config: config, or nested dicts; None = the config of the run. With a run, it may differ in
            the group `evaluation` only.
        categories: JSON file with a list of COCO categories, or with one as its field `categories`;
            None = those of the run, or else those of the config's data set.
        **evaluation: values that replace those of the config group `evaluation`; `batch_size` is
            by default not that of the config, but one image per device of this process.

    Raises:
        InputError: the folder is not a stage, a value is not allowed, or config or categories do
            not fit the model.
        FileError: a file is missing.
    """
    loaded = load_model(checkpoint, config=config, categories=categories, **evaluation)
    return Predictor(*loaded)


def _as_large(result: np.ndarray, member: PreparedImage) -> np.ndarray:
    """Crops the padding off a result [*canvas] int32 and resizes it to the size of its image."""
    height, width = member.result_size
    result = result[:height, :width]
    if member.result_size == member.image.shape[:2]:
        return result
    return cv2.resize(result, member.image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
