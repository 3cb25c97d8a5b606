"""Mean intersection over union (mIoU) from a confusion matrix that adds over images and hosts."""

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

    The last row holds pixels that the prediction leaves to nobody, the last column pixels that
    the ground truth ignores.

    Args:
      pred: [H, W] integer label map; every label outside 0..C-1 = nobody.
      gt: [H, W] integer label map; every label outside 0..C-1 (such as 255) = ignored.
      num_classes: C.
      evaluated: [C] bool, true pixels of other classes are ignored; None = all.

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


def iou(confusion: np.ndarray, *, unclaimed_is_wrong: bool = True) -> np.ndarray:
    """IoU [C] in percent; nan for classes without a true pixel.

    With `unclaimed_is_wrong=False` pixels that the prediction leaves to nobody are taken out of
    the ground truth as well, so that leaving pixels out costs nothing: the published count.
    """
    claimed = confusion[:-1, :-1]
    truth = confusion[:, :-1] if unclaimed_is_wrong else claimed
    hits, num_true, num_pred = np.diag(claimed), truth.sum(axis=0), claimed.sum(axis=1)
    with np.errstate(invalid='ignore'):
        return np.where(num_true > 0, 100 * hits / (num_true + num_pred - hits), np.nan)


def miou_scores(confusion: np.ndarray, classes: Sequence[int]) -> dict[str, float]:
    """`miou` and `miou_reference` in percent over those of the classes that have true pixels.

    In `miou` a pixel that no segment claims counts as wrong; `miou_reference` is the published
    count, which leaves such pixels out. nan where no class has a true pixel.
    """
    classes = np.asarray(classes, np.int64)

    def mean(values):
        values = values[classes]
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else float('nan')

    return {
        'miou': mean(iou(confusion)),
        'miou_reference': mean(iou(confusion, unclaimed_is_wrong=False)),
    }
