"""Mean intersection over union (mIoU), from pixel counts summed over images and hosts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from simcis_jax.evaluation.class_counts import ClassCounts


@dataclasses.dataclass(frozen=True)
class PixelCounts(ClassCounts):
    """Pixels per class, among those whose true class is evaluated."""

    true: np.ndarray  # [C] int64, pixels of the class.
    hits: np.ndarray  # [C] int64, of these, those that are predicted as the class.
    unassigned: np.ndarray  # [C] int64, of these, those that the prediction leaves unassigned.
    predicted: np.ndarray  # [C] int64, pixels that are predicted as the class.


def count_pixels(
    overlap: np.ndarray, gt_labels: np.ndarray, *, evaluated: np.ndarray | None = None
) -> PixelCounts:
    """Counts the pixels of one image.

    Args:
        overlap: [T + 1, C + 1] pixels of true segments (row 0 = void) by predicted label (column
            C = unassigned); see `overlap_table`.
        gt_labels: [T], class of each segment; -1 = none.
        evaluated: [C] bool; pixels whose true class is not evaluated are ignored; None = all.
    """
    num_classes = overlap.shape[1] - 1
    counted = gt_labels >= 0
    if evaluated is not None:
        counted = counted & evaluated[gt_labels]
    overlap, labels = overlap[1:][counted], gt_labels[counted]

    def per_class(pixels: np.ndarray) -> np.ndarray:
        total = np.zeros(num_classes, np.int64)
        np.add.at(total, labels, pixels)
        return total

    return PixelCounts(
        true=per_class(overlap.sum(axis=1)),
        hits=per_class(overlap[np.arange(len(labels)), labels]),
        unassigned=per_class(overlap[:, num_classes]),
        predicted=overlap[:, :num_classes].sum(axis=0),
    )


def iou(counts: PixelCounts, *, count_unassigned: bool = True) -> np.ndarray:
    """IoU [C] in percent; NaN for classes without true pixels.

    Unassigned pixels count as errors. With `count_unassigned=False`, as in the published code, they
    are ignored, so that leaving a pixel unassigned costs nothing.
    """
    true = counts.true if count_unassigned else counts.true - counts.unassigned
    with np.errstate(invalid='ignore'):
        union = true + counts.predicted - counts.hits
        return np.where(true > 0, 100 * counts.hits / union, np.nan)


def miou_scores(counts: PixelCounts, classes: Sequence[int]) -> dict[str, float]:
    """`miou` and `miou_reference` in percent, averaged over those classes that have true pixels.

    In `miou`, unassigned pixels count as errors; `miou_reference` ignores them, as in the published
    code. NaN if no class has true pixels.
    """
    classes = np.asarray(classes, np.int64)

    def mean(values):
        values = values[classes]
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else float('nan')

    return {
        'miou': mean(iou(counts)),
        'miou_reference': mean(iou(counts, count_unassigned=False)),
    }
