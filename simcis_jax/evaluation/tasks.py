"""The tasks on which a model is evaluated: panoptic, semantic and instance segmentation.

A task turns the predictions for one image into a result (traced, static shapes), compares the
result with the ground truth (as counts, summed over images and processes), and turns the counts
into a report. A new task is one class in this file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from pycocotools import mask as coco

from simcis_jax.data.source import Example
from simcis_jax.evaluation import panoptic_quality, stage_report
from simcis_jax.evaluation.average_precision import ImageInstances, Instances, average_precision
from simcis_jax.evaluation.mask_runs import encode_segments
from simcis_jax.evaluation.mean_iou import SemanticCounts, count_with_background
from simcis_jax.evaluation.overlap import overlap_table
from simcis_jax.evaluation.packed_instances import PackedInstances, pack
from simcis_jax.evaluation.panoptic_quality import PanopticCounts, PQCounts
from simcis_jax.evaluation.postprocess import (
    PanopticSegmentation,
    instance_inference,
    panoptic_inference,
    resized_labels,
    semantic_inference,
)
from simcis_jax.evaluation.soft_sum import class_scores, resized_scores, strongest_class
from simcis_jax.model.mask_logits import sigmoid_logits
from simcis_jax.model.resize import resize
from simcis_jax.types import Categories


@flax.struct.dataclass
class ImagePredictions:
    """The predictions of the network for one image, and the sizes of that image."""

    class_logits: Array  # [Q, C]; [Q, C + 1] with the softmax head.
    coarse_masks: Array  # [Q, h, w] mask logits of the padded input, at stride 4.
    masks: Array  # [Q, H, W] mask logits of the original image; -inf beyond it.
    size: Array  # [2] int32, height and width of the image inside the padded input.
    original_size: Array  # [2] int32, height and width of the original image inside H, W.
    padded_size: tuple[int, int] = flax.struct.field(pytree_node=False)
    head: str = flax.struct.field(pytree_node=False, default='sigmoid')  # The class head.
    # The kind of the coarse masks; `masks` are logits of a sigmoid.
    mask_kind: str = flax.struct.field(pytree_node=False, default='sigmoid')


class Task(Protocol):
    """One kind of segmentation and its metric, for C classes."""

    def infer(self, predictions: ImagePredictions, seen: Array | None) -> Any:
        """The result of one image as arrays; only classes `seen` [C] bool are predicted."""

    def fetch(self, results: Any) -> Any:
        """Copies the results of a batch of images, arrays [B, ...], to the host."""

    def zeros(self) -> Any:
        """The counts of no image."""

    def count(self, result: Any, example: Example, seen: np.ndarray) -> Any:
        """The counts of one image, to be summed with `+`; `seen` [C] bool classes are evaluated."""

    def to_json(self, counts: Any) -> Any:
        """Counts as JSON."""

    def from_json(self, value: Any) -> Any:
        """Counts from what `to_json` made of them, equal to the last bit."""

    def report(self, counts: Any, groups: Mapping[str, Sequence[int]]) -> dict:
        """Scores in percent of class groups and classes, ready for JSON (None = no score)."""

    def segments(self, result: Any, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """For pictures: segment map [*shape], 0 = nothing, and labels [n], -1 = no segment."""


@dataclasses.dataclass(frozen=True)
class PanopticTask:
    """Panoptic segmentation: things and stuff that never overlap, evaluated by PQ."""

    categories: Categories
    object_mask_threshold: float
    overlap_threshold: float

    def infer(self, predictions: ImagePredictions, seen: Array | None) -> PanopticSegmentation:
        """The panoptic segmentation [H, W]."""
        return panoptic_inference(
            predictions.class_logits,
            predictions.masks,
            is_thing=jnp.asarray(self.categories.is_thing),
            seen=seen,
            object_mask_threshold=self.object_mask_threshold,
            overlap_threshold=self.overlap_threshold,
            head=predictions.head,
        )

    fetch = staticmethod(jax.device_get)

    def zeros(self) -> PanopticCounts:
        """No segments."""
        zeros = PQCounts.zeros(len(self.categories))
        return PanopticCounts(zeros, zeros)

    def count(
        self, result: PanopticSegmentation, example: Example, seen: np.ndarray
    ) -> PanopticCounts:
        """Matches the segments of an image, once for each treatment of unseen classes."""
        segment_map, labels = self.segments(result, example.segment_map.shape)
        overlap = overlap_table(segment_map, len(labels), example.segment_map, len(example.labels))
        strict, seen_only = (
            panoptic_quality.count(
                overlap,
                labels,
                example.labels,
                example.crowd,
                len(self.categories),
                evaluated=seen,
                unseen_is_void=unseen_is_void,
            )
            for unseen_is_void in (False, True)
        )
        return PanopticCounts(strict, seen_only)

    def to_json(self, counts: PanopticCounts) -> list:
        """The counts of both treatments of unseen classes."""
        return [counts.strict.to_json(), counts.seen_only.to_json()]

    def from_json(self, value: list) -> PanopticCounts:
        """See `Task`."""
        return PanopticCounts(*(PQCounts.from_json(rows, len(self.categories)) for rows in value))

    def report(self, counts: PanopticCounts, groups: Mapping[str, Sequence[int]]) -> dict:
        """PQ, SQ, RQ, and the PQ for which pixels of unseen classes are void."""
        return stage_report.panoptic_report(
            counts.strict, groups, self.categories, seen_only=counts.seen_only
        )

    def segments(
        self, result: PanopticSegmentation, shape: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The segments of the result, cropped to the image."""
        return result.segment_map[: shape[0], : shape[1]], result.labels


@dataclasses.dataclass(frozen=True)
class SemanticTask:
    """Semantic segmentation: a label for every pixel, evaluated by mIoU."""

    categories: Categories
    object_mask_threshold: float
    overlap_threshold: float
    resize: str  # What is resized to the original image: 'logits', 'labels' or 'scores'.
    rule: str = 'segments'  # What decides the label of a pixel; 'soft_sum' as in Mask2Former.

    def infer(self, predictions: ImagePredictions, seen: Array | None) -> Array:
        """Labels [H, W] int32; C = unassigned."""
        masks = predictions.masks
        if self.resize != 'logits':
            masks = resize(predictions.coarse_masks, predictions.padded_size)
            masks = sigmoid_logits(masks, predictions.mask_kind)
        inputs = dict(seen=seen, head=predictions.head)
        sizes = dict(size=predictions.size, original_size=predictions.original_size)
        sizes['output_shape'] = predictions.masks.shape[1:]
        if self.rule == 'soft_sum':
            scores = class_scores(predictions.class_logits, masks, **inputs)
            return strongest_class(
                resized_scores(scores, **sizes) if self.resize == 'scores' else scores
            )
        label_map = semantic_inference(
            predictions.class_logits,
            masks,
            object_mask_threshold=self.object_mask_threshold,
            overlap_threshold=self.overlap_threshold,
            **inputs,
        )
        if self.resize == 'labels':
            return resized_labels(label_map, num_labels=len(self.categories) + 1, **sizes)
        return label_map

    fetch = staticmethod(jax.device_get)

    def zeros(self) -> SemanticCounts:
        """No pixels."""
        return SemanticCounts.zeros(len(self.categories))

    def count(self, result: np.ndarray, example: Example, seen: np.ndarray) -> SemanticCounts:
        """Pixels by predicted and true label."""
        height, width = example.segment_map.shape
        overlap = overlap_table(
            result[:height, :width],
            len(self.categories),
            example.segment_map,
            len(example.labels),
        )
        return count_with_background(overlap, example.labels, seen)

    def to_json(self, counts: SemanticCounts) -> list:
        """See `Task`."""
        return counts.to_json()

    def from_json(self, value: list) -> SemanticCounts:
        """See `Task`."""
        return SemanticCounts.from_json(value, len(self.categories))

    def report(self, counts: SemanticCounts, groups: Mapping[str, Sequence[int]]) -> dict:
        """All versions of mIoU."""
        return stage_report.semantic_report(counts, groups, self.categories)

    def segments(self, result: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """One segment per label."""
        present, positions = np.unique(result[: shape[0], : shape[1]], return_inverse=True)
        labels = np.where(present < len(self.categories), present, -1)
        return positions.reshape(shape) + 1, labels


@dataclasses.dataclass(frozen=True)
class InstanceTask:
    """Instance segmentation: scored things that may overlap, evaluated by AP."""

    categories: Categories
    num_instances: int
    shown_score: float = 0.3  # Minimum score of instances in pictures.

    def infer(self, predictions: ImagePredictions, seen: Array | None) -> PackedInstances:
        """The instances with the highest class probabilities."""
        instances = instance_inference(
            predictions.class_logits,
            predictions.masks,
            is_thing=jnp.asarray(self.categories.is_thing),
            seen=seen,
            num_instances=self.num_instances,
            head=predictions.head,
        )
        return pack(instances, predictions.masks)

    fetch = staticmethod(PackedInstances.fetch)

    def zeros(self) -> list[ImageInstances]:
        """No images."""
        return []

    def count(
        self, result: PackedInstances, example: Example, seen: np.ndarray
    ) -> list[ImageInstances]:
        """Predicted and true instances of an image."""
        valid = result.labels >= 0
        masks = result.masks(example.segment_map.shape)
        found = Instances(
            [masks[slot] for slot in result.slots[valid]],
            result.labels[valid],
            result.scores[valid].astype(np.float64),
            np.zeros(valid.sum(), bool),
        )
        counted = seen & np.asarray(self.categories.is_thing)
        segments = np.flatnonzero((example.labels >= 0) & counted[example.labels])
        true = Instances(
            encode_segments(example.segment_map, segments + 1),
            example.labels[segments],
            np.zeros(len(segments)),
            example.crowd[segments],
        )
        return [ImageInstances(str(example.image_id), found, true)]

    def to_json(self, counts: Sequence[ImageInstances]) -> list:
        """Image, predicted and true instances; masks in the form of COCO's result files."""
        return [image.to_json() for image in counts]

    def from_json(self, value: list) -> list[ImageInstances]:
        """See `Task`."""
        return [ImageInstances.from_json(image) for image in value]

    def report(
        self,
        counts: Sequence[ImageInstances],
        groups: Mapping[str, Sequence[int]],
    ) -> dict:
        """AP, AP50 and AP75 of things."""
        # Ties between scores are broken by the order of images: make it independent of processes.
        images = [(image.found, image.true) for image in sorted(counts, key=lambda x: x.image_id)]
        scores = average_precision(images, len(self.categories))
        return stage_report.instance_report(scores, groups, self.categories)

    def segments(
        self, result: PackedInstances, shape: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Instances with a score of at least `shown_score`, the highest on top."""
        shown = (result.labels >= 0) & (result.scores >= self.shown_score)
        shown = np.flatnonzero(shown)[np.argsort(result.scores[shown])]  # Highest score last.
        masks, segment_map = result.masks(shape), np.zeros(shape, np.int32)
        for number, slot in enumerate(result.slots[shown], start=1):
            segment_map[coco.decode(masks[slot]).astype(bool)] = number
        return segment_map, result.labels[shown]
