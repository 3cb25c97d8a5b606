"""Mean intersection over union (mIoU), from pixel counts summed over images and hosts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from simcis_jax.evaluation.class_counts import ClassCounts


@dataclasses.dataclass(frozen=True)
class PixelCounts(ClassCounts):
    """Pixels per class, among those whose true class is evaluated."""

    true: np.ndarray  # [C] int64, pixels of the class.
    hits: np.ndarray  # [C] int64, of these, those that are predicted as the class.
    unassigned: np.ndarray  # [C] int64, of these, those that the prediction leaves unassigned.
    predicted: np.ndarray  # [C] int64, pixels that are predicted as the class.


@dataclasses.dataclass(frozen=True)
class SemanticCounts:
    """Pixel counts with both treatments of pixels that have no evaluated class."""

    labelled: PixelCounts  # [C], these pixels are left out.
    background: PixelCounts  # [C + 1], they are class C, and so are unassigned pixels.

    @classmethod
    def zeros(cls, num_classes: int) -> SemanticCounts:
        """Counts of nothing, for C = `num_classes`."""
        return cls(PixelCounts.zeros(num_classes), PixelCounts.zeros(num_classes + 1))

    def to_json(self) -> list:
        """The rows of both counts."""
        return [self.labelled.to_json(), self.background.to_json()]

    @classmethod
    def from_json(cls, value: Sequence, num_classes: int) -> SemanticCounts:
        """Reads what `to_json` made."""
        labelled, background = value
        return cls(
            PixelCounts.from_json(labelled, num_classes),
            PixelCounts.from_json(background, num_classes + 1),
        )

    def __add__(self, other: SemanticCounts) -> SemanticCounts:
        return SemanticCounts(self.labelled + other.labelled, self.background + other.background)


def count_with_background(
    overlap: np.ndarray, gt_labels: np.ndarray, evaluated: np.ndarray
) -> SemanticCounts:
    """Counts the pixels of one image in both ways; the arguments are those of `count_pixels`."""
    background = overlap.shape[1] - 1
    counted = (gt_labels >= 0) & evaluated[gt_labels]
    labels = np.append(background, np.where(counted, gt_labels, background))
    # Void becomes a segment of the class background, and no pixel is unassigned.
    table = np.pad(overlap, ((1, 0), (0, 1)))
    return SemanticCounts(
        labelled=count_pixels(overlap, gt_labels, evaluated=evaluated),
        background=count_pixels(table, labels),
    )


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

    return {
        'miou': _mean(iou(counts)[classes]),
        'miou_reference': _mean(iou(counts, count_unassigned=False)[classes]),
    }


def miou_with_background(counts: SemanticCounts, groups: Mapping[str, Sequence[int]]) -> dict:
    """`miou_background` in percent of every group, of which `all` includes the background.

    This is the count of the published code of CoMFormer and ECLIPSE: a class that is predicted on
    pixels of no evaluated class loses IoU.
    """
    values = iou(counts.background)
    background = len(values) - 1
    return {
        group: _mean(values[[*classes, background] if group == 'all' else list(classes)])
        for group, classes in groups.items()
    }


def _mean(values: np.ndarray) -> float:
    """The mean over the classes that have true pixels; NaN if there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float('nan')
