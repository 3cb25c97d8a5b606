"""Sections about training: curves of the logged metrics, and timing."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence

from simcis_jax.evaluation.stage_report import different_settings
from simcis_jax.reporting import charts
from simcis_jax.reporting.charts import Span
from simcis_jax.reporting.elements import Element, element, note, section, table
from simcis_jax.reporting.run_folder import RunFolder
from simcis_jax.runtime.progress import duration
from simcis_jax.training.metrics_log import is_loss

# These metrics come first, in this order; the other losses follow, then the measures.
FIRST = ('val_pq', 'val_miou', 'val_ap', 'total', 'class', 'mask', 'dice', 'box', 'giou')
LOGARITHMIC = ('learning_rate', 'gradient_norm')
EXPLAINED = {
    'targets': 'segments per image, including pseudo-labels',
    'dropped_segments': 'segments beyond the available target slots',
    'nonfinite_costs': 'non-finite entries of the matching cost',
    'steps_per_second': 'between two log entries, without checkpoints and evaluations',
    'data_wait': 'share of the time in which the step waited for its batch',
    'checkpoint_seconds': 'since the last log entry',
    'evaluation_seconds': 'since the last log entry',
    'memory_in_use_gib': 'memory of the first device in GiB',
    'memory_peak_gib': 'highest memory of the first device in GiB',
    'val_pq': 'PQ of all classes seen so far, inside the stage',
    'val_miou': 'mIoU of all classes seen so far, inside the stage',
    'val_ap': 'AP of all classes seen so far, inside the stage',
}


def curves(run: RunFolder) -> Element | None:
    """Charts of all logged metrics."""
    names = list(dict.fromkeys(name for record in run.records for name in record))
    names = [name for name in names if name not in ('stage', 'step', 'settings')]
    order = [*FIRST, *sorted(filter(is_loss, names)), 'learning_rate', *sorted(names)]
    names = [name for name in dict.fromkeys(order) if name in names]
    spans = stage_spans(run.records)
    figures, constant = [], []
    for name in names:
        lines = _lines(run.records, spans, name)
        values = {value for line in lines for _, value in line}
        if len(values) > 1:
            chart = charts.curve(name, spans, lines, log=name in LOGARITHMIC)
            text = f' {charts.number(lines[-1][-1][1])} at the end'
            text += f'; {EXPLAINED[name]}' if name in EXPLAINED else ''
            caption = element('figcaption', element('b', name), text)
            figures.append(element('figure', caption, chart))
        elif values:
            text = f'{name} {charts.number(values.pop())}'
            constant.append(text + (f' ({EXPLAINED[name]})' if name in EXPLAINED else ''))
    if not figures and not constant:
        return None
    others = scored_otherwise(run.records)
    return section(
        'Training curves',
        'curves',
        note(
            'Loss terms are those of the last decoder layer; total is the weighted sum over all '
            'layers. In long curves, the line is the mean of neighbouring points and the band '
            'their range.'
        ),
        element('div', *figures, class_='curves'),
        note('Constant or logged once: ' + ', '.join(constant) + '.') if constant else None,
        note('Not all scores can be compared: ' + '; '.join(others) + '.') if others else None,
    )


def scored_otherwise(records: Sequence[Mapping]) -> list[str]:
    """The steps that were scored with other settings than the last one, in words."""
    scored = [record for record in records if record.get('settings') is not None]
    steps: dict[tuple[int, str], list[int]] = {}
    for record in scored:
        last = f'stage {scored[-1]["stage"]} step {scored[-1]["step"]}'
        different = different_settings(record, scored[-1], last)
        if different:
            steps.setdefault((record['stage'], different), []).append(record['step'])
    return [
        f'stage {stage} step {", ".join(map(str, numbers))} was scored with {different}'
        for (stage, different), numbers in steps.items()
    ]


def stage_spans(records: Sequence[Mapping]) -> list[Span]:
    """The step ranges of the logged stages, counted from the start of the run."""
    last = {record['stage']: record['step'] for record in records}
    spans, start = [], 0
    for stage, steps in last.items():
        spans.append(Span(stage, start, start + steps))
        start += steps
    return spans


def _lines(
    records: Sequence[Mapping], spans: Sequence[Span], name: str
) -> list[list[charts.Point]]:
    """The finite values of a metric, one line per stage that has values."""
    starts = {span.stage: span.start for span in spans}
    lines: dict[int, list[charts.Point]] = {}
    for record in records:
        value = record.get(name)
        if isinstance(value, int | float) and math.isfinite(value):
            line = lines.setdefault(record['stage'], [])
            line.append((starts[record['stage']] + record['step'], value))
    return list(lines.values())


def timing(run: RunFolder) -> Element | None:
    """Training speed of each stage."""
    batch_size = run.config.get('training', {}).get('batch_size')
    steps, seconds = collections.Counter(), collections.Counter()
    before: dict[int, int] = {}
    for record in run.records:
        stage, rate = record['stage'], record.get('steps_per_second')
        if rate:
            window = record['step'] - before.get(stage, 0)
            steps[stage] += window
            seconds[stage] += window / rate
            before[stage] = record['step']
    rows = []
    for stage, number in steps.items():
        rate = number / seconds[stage]
        images = f'{rate * batch_size:.3g}' if isinstance(batch_size, int) else '–'
        rows.append([str(stage), str(number), f'{rate:.3g}', images, duration(seconds[stage])])
    if not rows:
        return None
    return section(
        'Timing',
        'timing',
        table(
            'Training speed',
            ['stage', 'steps', 'steps/s', 'images/s', 'training time'],
            rows,
            foot=['all', '', '', '', duration(seconds.total())],
        ),
        note(
            'Training time is the number of steps divided by the rate at which they were done; it '
            'excludes compilation, class statistics, checkpoints and evaluation.'
        ),
    )
