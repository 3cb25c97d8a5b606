"""Panoptic quality (PQ), from counts summed over images and hosts.

The rules are those of the COCO panoptic API. In class-incremental stages, pixels of classes that
are not evaluated yet are not void: a prediction there is a false positive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from simcis_jax.evaluation.class_counts import ClassCounts


@dataclasses.dataclass(frozen=True)
class PQCounts(ClassCounts):
    """Counts of matched and unmatched segments per class."""

    tp: np.ndarray  # [C] int64, matched segments.
    fp: np.ndarray  # [C] int64, predicted segments without a match.
    fn: np.ndarray  # [C] int64, true segments without a match.
    iou: np.ndarray = dataclasses.field(  # [C] float64, summed IoU of the matched segments.
        metadata={'dtype': np.float64}
    )

    def per_class(self) -> dict[str, np.ndarray]:
        """PQ, SQ and RQ [C] in percent; NaN for classes without segments."""
        size = self.tp + 0.5 * self.fp + 0.5 * self.fn
        with np.errstate(invalid='ignore'):
            rq = self.tp / size
            pq = self.iou / size
        sq = np.where(size > 0, self.iou / np.maximum(self.tp, 1), np.nan)
        return {'pq': 100 * pq, 'sq': 100 * sq, 'rq': 100 * rq}


@dataclasses.dataclass(frozen=True)
class PanopticCounts:
    """PQ counts with both treatments of pixels whose class is not seen yet."""

    strict: PQCounts  # Predictions there are false positives, as in the published results.
    seen_only: PQCounts  # These pixels are void.

    def __add__(self, other: PanopticCounts) -> PanopticCounts:
        return PanopticCounts(self.strict + other.strict, self.seen_only + other.seen_only)


def count(
    overlap: np.ndarray,
    pred_labels: Sequence[int],
    gt_labels: Sequence[int],
    gt_crowd: Sequence[bool],
    num_classes: int,
    *,
    evaluated: np.ndarray | None = None,
    unseen_is_void: bool = False,
) -> PQCounts:
    """Matches the segments of one image and counts them per class.

    A predicted and a true segment of one class match if their IoU is above one half; void pixels
    are not part of the union. Ignored are predictions of which more than half is void or crowd of
    their class, and true segments that are crowd or whose class is not evaluated.

    Args:
        overlap: [T + 1, P + 1] of `overlap_table`.
        pred_labels: [P], classes; -1 = no segment.
        gt_labels: [T], classes; -1 = no evaluated segment.
        gt_crowd: [T] bool.
        num_classes: C.
        evaluated: [C] bool, classes whose true segments count; None = all.
        unseen_is_void: whether pixels of classes that are not evaluated are void; by default they
            are not, as in the published results.

    Raises:
        ValueError: a label is not a class.
    """
    pred_labels, gt_labels = np.asarray(pred_labels, np.int64), np.asarray(gt_labels, np.int64)
    for name, labels in (('pred', pred_labels), ('gt', gt_labels)):
        if len(labels) and not -1 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(
                f'{name}_labels must lie in -1..{num_classes - 1}, '
                f'got {labels.min()}..{labels.max()}.'
            )
    evaluated = np.ones(num_classes, bool) if evaluated is None else np.asarray(evaluated, bool)
    listed = (gt_labels >= 0) & evaluated[gt_labels]
    crowd = listed & np.asarray(gt_crowd, bool)

    on_void = overlap[0]
    if unseen_is_void:
        on_void = on_void + overlap[1:][~listed].sum(axis=0)
    gt_area, pred_area = overlap.sum(axis=1)[1:], overlap.sum(axis=0)[1:]
    overlap, on_void = overlap[1:, 1:], on_void[1:]

    union = gt_area[:, None] + pred_area - overlap - on_void  # [T, P]
    same_class = gt_labels[:, None] == pred_labels
    match = same_class & (listed & ~crowd)[:, None] & (2 * overlap > union)
    gt_index, pred_index = np.nonzero(match)

    # The COCO API keeps one crowd segment per class and image: the last one in its file. Ours are
    # in the order of their ids, as in most files.
    crowd_segment = np.full(num_classes, -1)
    crowd_segment[gt_labels[crowd]] = np.flatnonzero(crowd)
    own_crowd = np.arange(len(gt_labels))[:, None] == crowd_segment[pred_labels]  # [T, P]
    on_crowd = (own_crowd * overlap).sum(axis=0)
    predicted = (pred_labels >= 0) & (pred_area > 0)
    ignored = 2 * (on_void + on_crowd) > pred_area

    def tally(labels, **kwargs):
        return np.bincount(labels, minlength=num_classes, **kwargs)

    return PQCounts(
        tp=tally(gt_labels[gt_index]),
        fp=tally(pred_labels[predicted & ~match.any(axis=0) & ~ignored]),
        fn=tally(gt_labels[listed & ~crowd & ~match.any(axis=1)]),
        iou=tally(gt_labels[gt_index], weights=overlap[match] / union[match]),
    )


def pq_scores(counts: PQCounts, classes: Sequence[int]) -> dict[str, float]:
    """PQ, SQ and RQ in percent, averaged over those classes that have segments; NaN if none has.

    `num` is the number of these classes: one that is neither annotated nor predicted is left out.
    """
    classes = np.asarray(classes, np.int64)
    occurs = classes[(counts.tp + counts.fp + counts.fn)[classes] > 0]
    scores = {
        name: float(values[occurs].mean()) if len(occurs) else float('nan')
        for name, values in counts.per_class().items()
    }
    return scores | {'num': len(occurs)}
