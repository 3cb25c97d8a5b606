"""The scores of a run as papers report them, and their mean and deviation over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

COLUMNS = ('base', 'novel', 'all', 'average', 'first', 'kept')
TITLES = {
    'base': 'base',
    'novel': 'novel',
    'all': 'all',
    'average': 'avg',
    'first': 'base after stage 1',
    'kept': 'kept %',
}
METRICS = {
    'pq': 'PQ',
    'miou_reference': 'mIoU (published count)',
    'miou': 'mIoU',
    'miou_background': 'mIoU (background as a class)',
}
PER_CLASS = {'pq': 'pq', 'miou': 'iou'}  # Metric -> its key in the per-class scores.


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean and standard deviation over seeds."""

    mean: float
    deviation: float | None  # Sample standard deviation; None for one seed.
    count: int

    def __str__(self) -> str:
        spread = '' if self.deviation is None else f' ± {self.deviation:.1f}'
        return f'{self.mean:.1f}{spread}'


def metrics_of(results: Mapping) -> list[str]:
    """The metrics in the results: PQ alone for a panoptic run, else those of METRICS in order."""
    last = results['stages'][-1]
    return ['pq'] if 'pq' in last else [metric for metric in METRICS if metric in last]


def run_scores(
    results: Mapping, metric: str, base: Collection[str] | None = None
) -> dict[str, float | None]:
    """Scores after the last stage in percent, by column of COLUMNS.

    `average` is the mean of `all` over the stages, `first` the base score after stage 1, and `kept`
    is `base` as a percentage of `first`.

    Args:
        results: results of a run.
        metric: a key of METRICS.
        base: names of the base classes, if they differ from those of stage 1. Base and novel are
            then None for metrics that are not recorded per class.
    """
    first, last = results['stages'][0], results['stages'][-1]
    found = {'all': last[metric]['all'], 'average': results['average'].get(metric)}
    if base is None:
        found |= {group: last[metric][group] for group in ('base', 'novel')}
        found['first'] = first[metric]['base']
    else:
        split = [_mean(last, metric, base, is_base) for is_base in (True, False)]
        found |= dict(zip(('base', 'novel'), split, strict=True)) | {'first': None}
    is_continual = len(results['stages']) > 1
    found['average'] = found['average'] if is_continual else None
    found['kept'] = (
        100 * found['base'] / found['first'] if is_continual and found['first'] else None
    )
    return {column: found[column] for column in COLUMNS}


def _mean(report: Mapping, metric: str, base: Collection[str], is_base: bool) -> float | None:
    """Mean score of the classes in `base`, or of all other classes."""
    if metric not in PER_CLASS:
        return None
    classes = report['per_class'].items()
    values = [scores[PER_CLASS[metric]] for name, scores in classes if (name in base) == is_base]
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else None


def summarise(values: Sequence[float | None]) -> Summary | None:
    """Mean and sample standard deviation; None if a value is missing or there are no values."""
    if not values or any(value is None for value in values):
        return None
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(float(np.mean(values)), deviation, len(values))
