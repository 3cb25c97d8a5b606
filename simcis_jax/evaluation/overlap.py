"""The pixels that predicted and true segments share, from which all pixel metrics follow."""

from __future__ import annotations

import numpy as np


def overlap_table(
    pred_map: np.ndarray, num_pred: int, gt_map: np.ndarray, num_gt: int
) -> np.ndarray:
    """The number of pixels [T + 1, P + 1] that true segment t and predicted segment p share.

    Args:
        pred_map: [H, W] integer, 0..P.
        num_pred: P.
        gt_map: [H, W] integer, 0..T.
        num_gt: T.

    Raises:
        ValueError: the maps differ in shape, or hold other values.
    """
    if pred_map.shape != gt_map.shape:
        raise ValueError(
            f'Prediction and ground truth must have one shape, got pred_map {pred_map.shape} and '
            f'gt_map {gt_map.shape}; resize the prediction to the original image.'
        )
    for name, segments, number in (('pred_map', pred_map, num_pred), ('gt_map', gt_map, num_gt)):
        if segments.size and not 0 <= segments.min() <= segments.max() <= number:
            raise ValueError(
                f'{name} must hold ids 0..{number}, got {segments.min()}..{segments.max()}; '
                'each id needs a label.'
            )
    shape = (num_gt + 1, num_pred + 1)
    pairs = np.multiply(gt_map, shape[1], dtype=np.int64)
    pairs += pred_map
    return np.bincount(pairs.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
