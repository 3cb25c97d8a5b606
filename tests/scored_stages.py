"""Reports of three stages with known scores."""

import dataclasses

import numpy as np

from simcis_jax.evaluation import stage_report
from simcis_jax.evaluation.class_groups import class_groups
from simcis_jax.evaluation.mean_iou import PixelCounts, SemanticCounts
from simcis_jax.evaluation.panoptic_quality import PQCounts
from simcis_jax.types import Categories

STAGES = [(4, 0), (2,), (1, 3)]
CATEGORIES = Categories(
    names=('sky', 'car', 'road', 'person', 'tree'),
    is_thing=(False, True, False, True, False),
    colors=((0, 0, 0),) * 5,
)


def counts_of(pq):
    """Counts that give this PQ in percent: half of the segments match, with IoU 2 pq."""
    pq = np.asarray(pq, np.float64)
    ones = np.ones(len(pq), np.int64)
    return PQCounts(tp=ones, fp=ones, fn=ones, iou=pq / 50)


def panoptic_report(counts, groups, categories=CATEGORIES):
    """The report of counts of which half of the false positives lie on unseen classes."""
    seen_only = dataclasses.replace(counts, fp=counts.fp / 2)
    return stage_report.panoptic_report(counts, groups, categories, seen_only=seen_only)


def reports():
    counts = counts_of([10, 20, 30, 40, 50])
    return [panoptic_report(counts, class_groups(STAGES, stage)) for stage in range(3)]


def instance_scores():
    """AP of `car`; the other classes have none."""
    ap = np.array([np.nan, 20, np.nan, np.nan, np.nan])
    return {'ap': ap, 'ap50': 2 * ap, 'ap75': ap}


def all_right():
    """Counts of pixels of all five classes, and of background, that are all predicted right."""
    pixels = np.array([1, 2, 3, 4, 5, 6])
    counts = [
        PixelCounts(true=part, hits=part, unassigned=0 * part, predicted=part)
        for part in (pixels[:5], pixels)
    ]
    return SemanticCounts(*counts)
