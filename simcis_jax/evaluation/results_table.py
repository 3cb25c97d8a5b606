"""The tables that papers print: one row per stage, one column per class group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from simcis_jax.evaluation.class_groups import GROUPS
from simcis_jax.evaluation.stage_report import METRICS, different_settings

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
        ('background', 'miou_background', 'all'),
    ],
    'AP': [
        *((group, 'ap', group) for group in GROUPS),
        ('AP50', 'ap50', 'all'),
        ('AP75', 'ap75', 'all'),
    ],
}


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
    different = different_settings(report, last, f'stage {last.get("stage")}')
    return f'stage {report.get("stage")} was scored with {different}' if different else None


def format_per_class(report: Mapping) -> str:
    """The scores per class of one stage as aligned text, in the order the classes were learned."""
    per_class = report['per_class']
    keys = list(next(iter(per_class.values()), {}))
    rows = [['class', *(key.upper() for key in keys)]]
    rows += [[name, *(_cell(scores[key]) for key in keys)] for name, scores in per_class.items()]
    return _align(rows)


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
