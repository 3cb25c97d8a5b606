"""Average precision (AP) of instance masks by the rules of COCO, computed by pycocotools.

Masks are kept as run lengths, so that the instances of a whole data set fit into memory and pass
between processes.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


class Instances(NamedTuple):
    """Instances of one image: n predicted or true ones."""

    masks: list[dict[str, Any]]  # [n] run lengths of COCO.
    labels: np.ndarray  # [n] int
    scores: np.ndarray  # [n] float; of true instances not read.
    crowd: np.ndarray  # [n] bool, true instances that stand for a group.


def encoded(
    masks: Iterable[np.ndarray],
    labels: np.ndarray,
    *,
    scores: np.ndarray | None = None,
    crowd: np.ndarray | None = None,
) -> Instances:
    """Instances of n masks [H, W] bool and labels [n], with scores [n] or crowd flags [n].

    Masks are encoded one by one: those of a crowded image together may not fit into memory.
    """
    return Instances(
        masks=[run_lengths.encode(np.asfortranarray(mask, np.uint8)) for mask in masks],
        labels=np.asarray(labels),
        scores=np.zeros(len(labels)) if scores is None else np.asarray(scores, np.float64),
        crowd=np.zeros(len(labels), bool) if crowd is None else np.asarray(crowd, bool),
    )


def average_precision(
    images: Sequence[tuple[Instances, Instances]], num_classes: int
) -> dict[str, np.ndarray]:
    """`ap`, `ap50` and `ap75` [C] in percent; nan for classes without a true instance.

    AP is the mean over ten IoU thresholds (0.5, 0.55, .. 0.95) of the interpolated precision at
    101 recalls; at most 100 instances of an image and class count.

    Args:
        images: predicted and true instances of each image.
        num_classes: C.
    """
    scores = {name: np.full(num_classes, np.nan) for name in ('ap', 'ap50', 'ap75')}
    real = [true.labels[~true.crowd] for _, true in images]
    classes = np.unique(np.concatenate(real)) if real else np.zeros(0, int)
    if not len(classes):
        return scores
    found, true = zip(*images, strict=True)
    with contextlib.redirect_stdout(io.StringIO()):  # It reports its timings.
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
                    # The library measures at most 255 masks at once.
                    'area': float(run_lengths.area(mask)),
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
