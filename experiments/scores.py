"""The numbers that papers print of a run, and their mean and deviation over seeds."""

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
METRICS = {'pq': 'PQ', 'miou_reference': 'mIoU (published count)', 'miou': 'mIoU'}
OF_CLASS = {'pq': 'pq', 'miou': 'iou'}  # What a report says of every class.


@dataclasses.dataclass(frozen=True)
class Summary:
    """Numbers of several seeds as one."""

    mean: float
    deviation: float | None  # Of the sample; None for one seed.
    count: int

    def __str__(self) -> str:
        spread = '' if self.deviation is None else f' ± {self.deviation:.1f}'
        return f'{self.mean:.1f}{spread}'


def metrics_of(results: Mapping) -> list[str]:
    """The metrics that results have, in the order of METRICS; a panoptic run counts as such."""
    last = results['stages'][-1]
    return ['pq'] if 'pq' in last else [metric for metric in METRICS if metric in last]


def run_scores(
    results: Mapping, metric: str, base: Collection[str] | None = None
) -> dict[str, float | None]:
    """Percent after the last stage; `average` is over stages of `all`, `kept` is of `first`.

    Args:
        results: of a run.
        metric: of METRICS.
        base: names of other classes to call base than those of the first stage; then a metric that
            reports do not have for every class has no base and novel.
    """
    first, last = results['stages'][0], results['stages'][-1]
    made = {'all': last[metric]['all'], 'average': results['average'].get(metric)}
    if base is None:
        made |= {group: last[metric][group] for group in ('base', 'novel')}
        made['first'] = first[metric]['base']
    else:
        split = [_mean(last, metric, base, is_base) for is_base in (True, False)]
        made |= dict(zip(('base', 'novel'), split, strict=True)) | {'first': None}
    several = len(results['stages']) > 1
    made['average'] = made['average'] if several else None
    made['kept'] = 100 * made['base'] / made['first'] if several and made['first'] else None
    return {column: made[column] for column in COLUMNS}


def _mean(report: Mapping, metric: str, base: Collection[str], is_base: bool) -> float | None:
    """The mean over the classes that are in `base`, or over those that are not."""
    if metric not in OF_CLASS:
        return None
    classes = report['per_class'].items()
    values = [scores[OF_CLASS[metric]] for name, scores in classes if (name in base) == is_base]
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else None


def summarise(values: Sequence[float | None]) -> Summary | None:
    """Mean and sample standard deviation; None if a value is missing or there is none."""
    if not values or any(value is None for value in values):
        return None
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(float(np.mean(values)), deviation, len(values))
