"""Mean intersection over union (mIoU), from confusion matrices summed over images and hosts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def confusion_matrix(
    pred: np.ndarray,
    gt: np.ndarray,
    num_classes: int,
    *,
    evaluated: np.ndarray | None = None,
) -> np.ndarray:
    """Pixels [C + 1, C + 1] int64 by predicted (row) and true (column) label.

    The last row counts pixels that the prediction leaves unassigned, the last column pixels that
    are ignored in the ground truth.

    Args:
      pred: [H, W] integer label map; labels outside 0..C-1 = unassigned.
      gt: [H, W] integer label map; labels outside 0..C-1 (such as 255) = ignored.
      num_classes: C.
      evaluated: [C] bool; pixels whose true class is not evaluated are ignored; None = all classes.

    Raises:
      ValueError: the maps differ in shape.
    """
    if pred.shape != gt.shape:
        raise ValueError(
            f'Prediction and ground truth must have one shape, got pred {pred.shape} and '
            f'gt {gt.shape}; resize the prediction to the original image.'
        )
    kept = np.append(np.ones(num_classes, bool) if evaluated is None else evaluated, False)
    pred, gt = (
        np.where((labels >= 0) & (labels < num_classes), labels, num_classes).astype(np.int64)
        for labels in (pred, gt)
    )
    gt = np.where(kept[gt], gt, num_classes)
    size = num_classes + 1
    return np.bincount((pred * size + gt).ravel(), minlength=size * size).reshape(size, size)


def iou(confusion: np.ndarray, *, count_unassigned: bool = True) -> np.ndarray:
    """IoU [C] in percent; NaN for classes without true pixels.

    Unassigned pixels count as errors. With `count_unassigned=False`, as in the published code, they
    are ignored, so that leaving a pixel unassigned costs nothing.

    Args:
      confusion: [C + 1, C + 1] of `confusion_matrix`.
      count_unassigned: whether unassigned pixels count as errors.
    """
    assigned = confusion[:-1, :-1]
    truth = confusion[:, :-1] if count_unassigned else assigned
    hits, num_true, num_pred = np.diag(assigned), truth.sum(axis=0), assigned.sum(axis=1)
    with np.errstate(invalid='ignore'):
        return np.where(num_true > 0, 100 * hits / (num_true + num_pred - hits), np.nan)


def miou_scores(confusion: np.ndarray, classes: Sequence[int]) -> dict[str, float]:
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
        'miou': mean(iou(confusion)),
        'miou_reference': mean(iou(confusion, count_unassigned=False)),
    }
