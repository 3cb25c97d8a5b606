"""Sections about training: what was logged, and how fast it was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from simcis_jax.reporting import charts
from simcis_jax.reporting.charts import Span
from simcis_jax.reporting.elements import Element, element, note, section, table
from simcis_jax.reporting.run_folder import RunFolder
from simcis_jax.runtime.progress import duration

# What is drawn first, in this order; metrics of other names follow.
FIRST = ('total', 'class', 'mask', 'dice', 'box', 'giou', 'csl', 'decoder_kl', 'learning_rate')
LOGARITHMIC = ('learning_rate', 'gradient_norm')
EXPLAINED = {
    'targets': 'segments of an image, with pseudo-labels',
    'dropped_segments': 'segments that found no slot',
    'nonfinite_costs': 'costs of the matching that were not finite',
    'steps_per_second': 'mean since the stage was started or continued',
}


def curves(run: RunFolder) -> Element | None:
    """Everything that was logged while training."""
    names = list(dict.fromkeys(name for record in run.records for name in record))
    names = [name for name in names if name not in ('stage', 'step')]
    order = [name for name in FIRST if name in names]
    names = order + sorted(set(names) - set(order))
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
    return section(
        'Training curves',
        'curves',
        note(
            'Loss terms are those of the last layer; total is the weighted sum over all layers. '
            'Where points are many, the line is their mean and the band their range.'
        ),
        element('div', *figures, class_='curves'),
        note('Constant: ' + ', '.join(constant) + '.') if constant else None,
    )


def stage_spans(records: Sequence[Mapping]) -> list[Span]:
    """The stages that were logged, over the steps of all of them."""
    last = {record['stage']: record['step'] for record in records}
    spans, start = [], 0
    for stage, steps in last.items():
        spans.append(Span(stage, start, start + steps))
        start += steps
    return spans


def _lines(
    records: Sequence[Mapping], spans: Sequence[Span], name: str
) -> list[list[charts.Point]]:
    """A metric's finite values, a line for every stage that has some."""
    starts = {span.stage: span.start for span in spans}
    lines: dict[int, list[charts.Point]] = {}
    for record in records:
        value = record.get(name)
        if isinstance(value, int | float) and math.isfinite(value):
            line = lines.setdefault(record['stage'], [])
            line.append((starts[record['stage']] + record['step'], value))
    return list(lines.values())


def timing(run: RunFolder) -> Element | None:
    """How fast each stage was trained."""
    last = {record['stage']: record for record in run.records}
    batch_size = run.config.get('training', {}).get('batch_size')
    rows, total = [], 0.0
    for stage, record in last.items():
        rate = record.get('steps_per_second')
        if not rate:
            continue
        total += record['step'] / rate
        images = f'{rate * batch_size:.3g}' if isinstance(batch_size, int) else '–'
        rows.append(
            [
                str(stage),
                str(record['step']),
                f'{rate:.3g}',
                images,
                duration(record['step'] / rate),
            ]
        )
    if not rows:
        return None
    return section(
        'Timing',
        'timing',
        table(
            'Training',
            ['stage', 'steps', 'steps/s', 'images/s', 'training time'],
            rows,
            foot=['all', '', '', '', duration(total)],
        ),
        note(
            'Rates are means since a stage was started or continued. Training time is steps over '
            'rate: without compiling, the class statistics and the evaluation.'
        ),
    )
