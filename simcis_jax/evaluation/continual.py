"""Class groups of a stage, their scores, and the tables that papers print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from simcis_jax.errors import InputError
from simcis_jax.evaluation.mean_iou import PixelCounts, iou, miou_scores
from simcis_jax.evaluation.panoptic_quality import PQCounts, pq_scores
from simcis_jax.types import Categories

GROUPS = ('base', 'novel', 'past', 'current', 'all')
METRICS = ('pq', 'sq', 'rq', 'pq_seen_only', 'miou', 'miou_reference', 'ap', 'ap50', 'ap75')
# Columns of each table: title, metric, group.
TABLES = {
    'PQ': [
        *((group, 'pq', group) for group in GROUPS),
        ('SQ', 'sq', 'all'),
        ('RQ', 'rq', 'all'),
        ('things', 'pq', 'all_things'),
        ('stuff', 'pq', 'all_stuff'),
        ('seen only', 'pq_seen_only', 'all'),
    ],
    'mIoU': [
        *((group, 'miou', group) for group in GROUPS),
        ('reference', 'miou_reference', 'all'),
    ],
    'AP': [
        *((group, 'ap', group) for group in GROUPS),
        ('AP50', 'ap50', 'all'),
        ('AP75', 'ap75', 'all'),
    ],
}


def class_groups(stages: Sequence[Sequence[int]], stage: int) -> dict[str, tuple[int, ...]]:
    """The labels of each group of GROUPS after stage `stage` (0-based).

    base = C^1, novel = C^2..t, past = C^1..t-1, current = C^t, all = C^1..t. In the first stage,
    novel and past are empty.

    Raises:
        ValueError: the stage does not exist.
    """
    if not 0 <= stage < len(stages):
        raise ValueError(f'Stage {stage} does not exist; there are stages 0..{len(stages) - 1}.')

    def join(parts):
        return tuple(label for part in parts for label in part)

    return {
        'base': tuple(stages[0]),
        'novel': join(stages[1 : stage + 1]),
        'past': join(stages[:stage]),
        'current': tuple(stages[stage]),
        'all': join(stages[: stage + 1]),
    }


def panoptic_report(
    counts: PQCounts,
    groups: Mapping[str, Sequence[int]],
    categories: Categories,
    *,
    seen_only: PQCounts,
) -> dict:
    """PQ, SQ and RQ in percent of every group and class, ready for JSON (None = no score).

    Returns {'pq': {'base': .., 'base_things': .., 'base_stuff': .., 'novel': .., ...},
    'sq': .., 'rq': .., 'pq_seen_only': .., 'per_class': {name: {'pq', 'sq', 'rq', 'tp', 'fp',
    'fn'}}}, where `per_class` lists the classes of the group `all`. `pq_seen_only` is computed from
    the counts `seen_only`, for which pixels of unseen classes are void.
    """
    names = ('pq', 'sq', 'rq')
    report = {name: {} for name in (*names, 'pq_seen_only')}
    for group, classes in groups.items():
        parts = {
            group: classes,
            f'{group}_things': [c for c in classes if categories.is_thing[c]],
            f'{group}_stuff': [c for c in classes if not categories.is_thing[c]],
        }
        for part, members in parts.items():
            scores = pq_scores(counts, members)
            for name in names:
                report[name][part] = _json_number(scores[name])
            report['pq_seen_only'][part] = _json_number(pq_scores(seen_only, members)['pq'])
    per_class = counts.per_class()
    report['per_class'] = {
        categories.names[c]: {name: _json_number(per_class[name][c]) for name in names}
        | {'tp': int(counts.tp[c]), 'fp': int(counts.fp[c]), 'fn': int(counts.fn[c])}
        for c in groups['all']
    }
    return report


def semantic_report(
    counts: PixelCounts, groups: Mapping[str, Sequence[int]], categories: Categories
) -> dict:
    """`miou` and `miou_reference` in percent of every group, and IoU per class, ready for JSON.

    Returns {'miou': {'base': .., 'novel': .., ...}, 'miou_reference': {..}, 'per_class':
    {name: {'iou'}}}; None = no score.
    """
    scores = {group: miou_scores(counts, classes) for group, classes in groups.items()}
    report = {
        name: {group: _json_number(scores[group][name]) for group in groups}
        for name in ('miou', 'miou_reference')
    }
    return report | {'per_class': _per_class({'iou': iou(counts)}, groups, categories)}


def instance_report(
    scores: Mapping[str, np.ndarray], groups: Mapping[str, Sequence[int]], categories: Categories
) -> dict:
    """AP in percent of every group and class, ready for JSON, from scores of `average_precision`.

    Returns {'ap': {'base': .., 'novel': .., ...}, 'ap50': {..}, 'ap75': {..}, 'per_class':
    {name: {'ap', 'ap50', 'ap75'}}}. Stuff, and things without a true instance, have no score: None.
    """
    report = {
        name: {group: _mean(values[list(classes)]) for group, classes in groups.items()}
        for name, values in scores.items()
    }
    return report | {'per_class': _per_class(scores, groups, categories)}


def merge_reports(reports: Sequence[Mapping]) -> dict:
    """Merges the reports of several tasks for one stage."""
    merged = {name: scores for report in reports for name, scores in report.items()}
    names = list(reports[0]['per_class'])
    merged['per_class'] = {
        name: {key: value for report in reports for key, value in report['per_class'][name].items()}
        for name in names
    }
    return merged


def check_report(report: Mapping) -> None:
    """Raises an InputError unless an object of JSON has the form of a stage's report."""

    def are_scores(scores, *needed):
        return (
            isinstance(scores, Mapping)
            and all(name in scores for name in needed)
            and all(x is None or isinstance(x, int | float) for x in scores.values())
        )

    per_class = report.get('per_class')
    valid = {
        'stage': isinstance(report.get('stage', 0), int),
        'per_class': isinstance(per_class, Mapping) and all(map(are_scores, per_class.values())),
    } | {name: are_scores(report[name], 'all') for name in METRICS if name in report}
    for name, is_valid in valid.items():
        if not is_valid:
            raise InputError(f'field {name!r} is missing or holds something else')


def results(stage_reports: Sequence[Mapping]) -> dict:
    """The reports of all stages so far, and the mean over stages of each metric's group `all`."""
    average = {}
    for name in METRICS:
        values = [report[name]['all'] for report in stage_reports if name in report]
        values = [value for value in values if value is not None]
        if values:
            average[name] = float(np.mean(values))
    return {'stages': list(stage_reports), 'average': average}


def format_table(results: Mapping) -> str:
    """The results as aligned text: one row per stage, then the average of group `all` over stages.

    There is one table each for PQ, mIoU and AP, if any stage has them; '-' = no score. Below, the
    stages are named that were scored with other settings than the last one.
    """
    stages, averages, texts = results['stages'], results['average'], []
    for title, columns in TABLES.items():
        if not any(columns[0][1] in report for report in stages):
            continue
        rows = [[f'{title} at stage', *(name for name, _, _ in columns)]]
        for position, report in enumerate(stages, start=1):
            cells = (_cell(report.get(metric, {}).get(key)) for _, metric, key in columns)
            rows.append([str(report.get('stage', position)), *cells])
        cells = (_cell(averages.get(m) if key == 'all' else None, '') for _, m, key in columns)
        rows.append(['avg', *cells])
        texts.append(_align(rows))
    notes = [note for report in stages if (note := _other_settings(report, stages[-1]))]
    if notes:
        texts.append('\n'.join(notes))
    return '\n\n'.join(texts)


def _other_settings(report: Mapping, last: Mapping) -> str | None:
    """The evaluation settings of a stage that differ from those of the last stage, in words."""
    here, there = report.get('settings'), last.get('settings')
    if here is None or there is None:
        return None
    different = ', '.join(
        f'evaluation.{key}={here.get(key)} (stage {last["stage"]}: {there[key]})'
        for key in there
        if here.get(key) != there[key]
    )
    return f'stage {report["stage"]} was scored with {different}' if different else None


def format_per_class(report: Mapping) -> str:
    """The scores per class of one stage as aligned text, in the order the classes were learned."""
    per_class = report['per_class']
    keys = list(next(iter(per_class.values()), {}))
    rows = [['class', *(key.upper() for key in keys)]]
    rows += [[name, *(_cell(scores[key]) for key in keys)] for name, scores in per_class.items()]
    return _align(rows)


def _per_class(
    scores: Mapping[str, np.ndarray], groups: Mapping[str, Sequence[int]], categories: Categories
) -> dict:
    return {
        categories.names[c]: {name: _json_number(values[c]) for name, values in scores.items()}
        for c in groups['all']
    }


def _mean(values: np.ndarray) -> float | None:
    """The mean over the classes that have a score."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def _json_number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _cell(value: float | int | None, empty: str = '-') -> str:
    if value is None:
        return empty
    return str(value) if isinstance(value, int) else f'{value:.1f}'


def _align(rows: Sequence[Sequence[str]]) -> str:
    """Aligns the first column left and the others right, with a line below the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append('  '.join(cells).rstrip())
    lines.insert(1, '-' * (sum(widths) + 2 * len(widths) - 2))
    return '\n'.join(lines)
