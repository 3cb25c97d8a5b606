"""Average precision (AP) of instance masks, computed by pycocotools with the rules of COCO.

Masks are run-length encodings, so that the instances of a whole data set fit into memory and can
be sent between processes.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from simcis_jax.evaluation.mask_runs import RLE


class Instances(NamedTuple):
    """The n predicted instances, or the n ground-truth instances, of one image."""

    masks: list[RLE]  # [n]
    labels: np.ndarray  # [n] int
    scores: np.ndarray  # [n] float; ignored for ground truth.
    crowd: np.ndarray  # [n] bool; iscrowd flags of ground truth.

    def to_json(self) -> list:
        """One row per instance; the run lengths are ASCII."""
        masks = ({**mask, 'counts': mask['counts'].decode('ascii')} for mask in self.masks)
        columns = (column.tolist() for column in (self.labels, self.scores, self.crowd))
        return [list(row) for row in zip(masks, *columns, strict=True)]

    @classmethod
    def from_json(cls, rows: Sequence[Sequence]) -> Instances:
        """Reads what `to_json` made."""
        masks, labels, scores, crowd = zip(*rows, strict=True) if rows else ((), (), (), ())
        return cls(
            [{**mask, 'counts': mask['counts'].encode('ascii')} for mask in masks],
            np.asarray(labels, np.int64),
            np.asarray(scores, np.float64),
            np.asarray(crowd, bool),
        )


class ImageInstances(NamedTuple):
    """Predicted and true instances of one image."""

    image_id: str
    found: Instances
    true: Instances

    def to_json(self) -> list:
        """Image and its instances; masks in the form of COCO's result files."""
        return [self.image_id, self.found.to_json(), self.true.to_json()]

    @classmethod
    def from_json(cls, value: Sequence) -> ImageInstances:
        """Reads what `to_json` made."""
        return cls(value[0], *map(Instances.from_json, value[1:]))


def average_precision(
    images: Sequence[tuple[Instances, Instances]], num_classes: int
) -> dict[str, np.ndarray]:
    """Computes AP for each class.

    AP is the mean over ten IoU thresholds (0.5, 0.55, .. 0.95) of the interpolated precision at
    101 recalls, with at most 100 predictions per image and class.

    Args:
        images: predicted and ground-truth instances of each image.
        num_classes: C.

    Returns:
        `ap`, `ap50` and `ap75` [C] in percent; NaN for classes without ground-truth instances.
    """
    scores = {name: np.full(num_classes, np.nan) for name in ('ap', 'ap50', 'ap75')}
    real = [true.labels[~true.crowd] for _, true in images]
    classes = np.unique(np.concatenate(real)) if real else np.zeros(0, int)
    if not len(classes):
        return scores
    found, true = zip(*images, strict=True)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints timings.
        evaluation = COCOeval(_index(true, num_classes), _index(found, num_classes), 'segm')
        evaluation.params.catIds = classes.tolist()
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ['all']
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = 100 * evaluation.eval['precision'][..., 0, 0]  # [IoU thresholds, recalls, classes]
    scores['ap'][classes] = precision.mean(axis=(0, 1))
    scores['ap50'][classes] = precision[0].mean(axis=0)
    scores['ap75'][classes] = precision[5].mean(axis=0)
    return scores


def _index(images: Sequence[Instances], num_classes: int) -> COCO:
    entries, annotations = [], []
    for image_id, instances in enumerate(images):
        height, width = instances.masks[0]['size'] if instances.masks else (0, 0)
        entries.append({'id': image_id, 'height': height, 'width': width})
        for mask, label, score, crowd in zip(*instances, strict=True):
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image_id,
                    'category_id': int(label),
                    'segmentation': mask,
                    'score': float(score),
                    'iscrowd': int(crowd),
                    # One at a time: pycocotools miscounts more than 255 masks in a call.
                    'area': float(coco.area(mask)),
                }
            )
    index = COCO()
    index.dataset = {
        'images': entries,
        'categories': [{'id': label} for label in range(num_classes)],
        'annotations': annotations,
    }
    index.createIndex()
    return index
