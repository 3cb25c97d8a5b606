"""What a model can be scored on: panoptic, semantic and instance results.

A task turns the predictions for one image into a result (traced, static shapes), compares the
result with the ground truth (counts that add over images and processes), and turns the counts into
a report. Adding a task is one class here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax.numpy as jnp
import numpy as np
from jax import Array

from simcis_jax.data.source import Example
from simcis_jax.evaluation import continual, panoptic_quality
from simcis_jax.evaluation.average_precision import Instances, average_precision, encoded
from simcis_jax.evaluation.mean_iou import confusion_matrix
from simcis_jax.evaluation.panoptic_quality import PQCounts
from simcis_jax.evaluation.postprocess import (
    PanopticSegmentation,
    instance_inference,
    panoptic_inference,
    resized_labels,
    semantic_inference,
)
from simcis_jax.model.resize import resize
from simcis_jax.types import Categories


@flax.struct.dataclass
class ImagePredictions:
    """What the network says about one image, and where that lies in it."""

    class_logits: Array  # [Q, C]
    coarse_masks: Array  # [Q, h, w] mask logits of the padded input, at stride 4.
    masks: Array  # [Q, H, W] mask logits of the image as stored; -inf beyond it.
    size: Array  # [2] int32, height and width of the image inside the padded input.
    original_size: Array  # [2] int32, height and width of the image as stored, inside H, W.
    padded_size: tuple[int, int] = flax.struct.field(pytree_node=False)


class Task(Protocol):
    """One kind of results and how they are scored; C classes in all."""

    def infer(self, predictions: ImagePredictions, seen: Array | None) -> Any:
        """The result of one image as arrays [H, W, ...]; only classes `seen` [C] bool compete."""

    def zeros(self) -> Any:
        """The counts of no image."""

    def count(self, result: Any, example: Example, seen: np.ndarray) -> Any:
        """The counts of one image; add them with `+`. `seen` [C] bool: what is evaluated."""

    def report(self, counts: Any, groups: Mapping[str, Sequence[int]]) -> dict:
        """Scores of class groups and classes in percent, ready for JSON (no score = None)."""

    def segments(self, result: Any, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """For a picture: segment map [*shape], 0 = nothing, and labels [n], -1 = no segment."""


@dataclasses.dataclass(frozen=True)
class PanopticCounts:
    """PQ counts by both ways to see pixels of classes that are not seen yet."""

    strict: PQCounts  # Predictions there are wrong, as in the published results.
    seen_only: PQCounts  # They are void.

    def __add__(self, other: PanopticCounts) -> PanopticCounts:
        return PanopticCounts(self.strict + other.strict, self.seen_only + other.seen_only)


@dataclasses.dataclass(frozen=True)
class PanopticTask:
    """Things and stuff in segments that never overlap, scored by PQ."""

    categories: Categories
    object_mask_threshold: float
    overlap_threshold: float

    def infer(self, predictions: ImagePredictions, seen: Array | None) -> PanopticSegmentation:
        """Segments [H, W]."""
        return panoptic_inference(
            predictions.class_logits,
            predictions.masks,
            is_thing=jnp.asarray(self.categories.is_thing),
            seen=seen,
            object_mask_threshold=self.object_mask_threshold,
            overlap_threshold=self.overlap_threshold,
        )

    def zeros(self) -> PanopticCounts:
        """No segments."""
        zeros = PQCounts.zeros(len(self.categories))
        return PanopticCounts(zeros, zeros)

    def count(
        self, result: PanopticSegmentation, example: Example, seen: np.ndarray
    ) -> PanopticCounts:
        """Matches the segments of an image twice, by both ways to see unseen classes."""
        segment_map, labels = self.segments(result, example.segment_map.shape)
        strict, seen_only = (
            panoptic_quality.count(
                segment_map,
                labels,
                example.segment_map,
                example.labels,
                example.crowd,
                len(self.categories),
                evaluated=seen,
                unseen_is_void=unseen_is_void,
            )
            for unseen_is_void in (False, True)
        )
        return PanopticCounts(strict, seen_only)

    def report(self, counts: PanopticCounts, groups: Mapping[str, Sequence[int]]) -> dict:
        """PQ, SQ, RQ, and PQ over pixels of seen classes."""
        return continual.panoptic_report(
            counts.strict, groups, self.categories, seen_only=counts.seen_only
        )

    def segments(
        self, result: PanopticSegmentation, shape: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The result as it is."""
        return result.segment_map[: shape[0], : shape[1]], result.labels


@dataclasses.dataclass(frozen=True)
class SemanticTask:
    """A label for every pixel, scored by mIoU."""

    categories: Categories
    object_mask_threshold: float
    overlap_threshold: float
    resize: str  # 'logits': before labels are decided; 'labels': after, as published.

    def infer(self, predictions: ImagePredictions, seen: Array | None) -> Array:
        """Labels [H, W] int32; C = nobody's pixel."""
        masks = predictions.masks
        if self.resize == 'labels':
            masks = resize(predictions.coarse_masks, predictions.padded_size)
        label_map = semantic_inference(
            predictions.class_logits,
            masks,
            seen=seen,
            object_mask_threshold=self.object_mask_threshold,
            overlap_threshold=self.overlap_threshold,
        )
        if self.resize == 'labels':
            label_map = resized_labels(
                label_map,
                num_labels=len(self.categories) + 1,
                size=predictions.size,
                original_size=predictions.original_size,
                output_shape=predictions.masks.shape[1:],
            )
        return label_map

    def zeros(self) -> np.ndarray:
        """No pixels."""
        return np.zeros((len(self.categories) + 1,) * 2, np.int64)

    def count(self, result: np.ndarray, example: Example, seen: np.ndarray) -> np.ndarray:
        """Pixels [C + 1, C + 1] by predicted and true label."""
        height, width = example.segment_map.shape
        true = np.append(-1, example.labels)[example.segment_map]
        return confusion_matrix(result[:height, :width], true, len(self.categories), evaluated=seen)

    def report(self, counts: np.ndarray, groups: Mapping[str, Sequence[int]]) -> dict:
        """Both mIoU."""
        return continual.semantic_report(counts, groups, self.categories)

    def segments(self, result: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """One segment a label."""
        present, positions = np.unique(result[: shape[0], : shape[1]], return_inverse=True)
        labels = np.where(present < len(self.categories), present, -1)
        return positions.reshape(shape) + 1, labels


class ImageInstances(NamedTuple):
    """Predicted and true instances of one image."""

    image_id: str
    found: Instances
    true: Instances


class PackedInstances(NamedTuple):
    """Instances whose masks take a bit a pixel on their way to the host."""

    masks: Array  # [K, H, ceil(W / 8)] uint8
    labels: Array  # [K] int32; -1 = no instance.
    scores: Array  # [K] float32


@dataclasses.dataclass(frozen=True)
class InstanceTask:
    """Things that may overlap, each with a score, scored by AP."""

    categories: Categories
    num_instances: int
    shown_score: float = 0.3  # Instances in pictures have at least this score.

    def infer(self, predictions: ImagePredictions, seen: Array | None) -> PackedInstances:
        """The best pairs of query and thing class."""
        instances = instance_inference(
            predictions.class_logits,
            predictions.masks,
            is_thing=jnp.asarray(self.categories.is_thing),
            seen=seen,
            num_instances=self.num_instances,
        )
        masks = jnp.packbits(instances.masks, axis=-1)
        return PackedInstances(masks, instances.labels, instances.scores)

    def zeros(self) -> list[ImageInstances]:
        """No images."""
        return []

    def count(
        self, result: PackedInstances, example: Example, seen: np.ndarray
    ) -> list[ImageInstances]:
        """Predicted and true instances of an image."""
        valid = result.labels >= 0
        found = encoded(
            self._masks(result, valid, example.segment_map.shape),
            result.labels[valid],
            scores=result.scores[valid],
        )
        counted = seen & np.asarray(self.categories.is_thing)
        segments = np.flatnonzero((example.labels >= 0) & counted[example.labels])
        true = encoded(
            example.segment_map == (segments + 1)[:, None, None],
            example.labels[segments],
            crowd=example.crowd[segments],
        )
        return [ImageInstances(str(example.image_id), found, true)]

    def report(
        self,
        counts: Sequence[ImageInstances],
        groups: Mapping[str, Sequence[int]],
    ) -> dict:
        """AP, AP50 and AP75 of things."""
        # The order of images decides between equal scores; here it is not that of processes.
        images = [(image.found, image.true) for image in sorted(counts, key=lambda x: x.image_id)]
        scores = average_precision(images, len(self.categories))
        return continual.instance_report(scores, groups, self.categories)

    def segments(
        self, result: PackedInstances, shape: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Instances that are sure enough, the surest on top."""
        shown = (result.labels >= 0) & (result.scores >= self.shown_score)
        shown = np.flatnonzero(shown)[np.argsort(result.scores[shown])]  # The best comes last.
        segment_map = np.zeros(shape, np.int32)
        for number, mask in enumerate(self._masks(result, shown, shape), start=1):
            segment_map[mask] = number
        return segment_map, result.labels[shown]

    def _masks(
        self, result: PackedInstances, rows: np.ndarray, shape: tuple[int, int]
    ) -> np.ndarray:
        packed = result.masks[rows, : shape[0]]
        return np.unpackbits(packed, axis=-1, count=shape[1]).astype(bool)
