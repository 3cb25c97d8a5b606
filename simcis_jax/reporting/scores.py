"""Sections about scores: by class group, by the stage that learned the classes, by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from simcis_jax.evaluation.class_groups import GROUPS
from simcis_jax.evaluation.results_table import TABLES
from simcis_jax.reporting import charts, statistics
from simcis_jax.reporting.elements import Cell, Element, element, note, section, table
from simcis_jax.reporting.run_folder import RunFolder
from simcis_jax.reporting.statistics import ClassChange, Score


class Kind(NamedTuple):
    """A task with its metrics: one of the tables of an evaluation."""

    title: str
    metric: str  # Key in the scores of class groups.
    class_metric: str  # Key in the scores of a class.
    columns: Mapping[str, tuple[str, str]]  # Column title -> metric and class group.


NOTES = {
    'PQ': '“seen only” treats pixels of classes of later stages as void.',
    'mIoU': '“reference” is the count of the published code, which leaves out unpredicted pixels; '
    '“background” counts these, and pixels without a seen class, as one more class.',
    'AP': 'Instance segmentation has things only.',
}


def kinds(reports: Sequence[Mapping]) -> list[Kind]:
    """The tasks that the stages were evaluated on."""
    found = []
    for title, columns in TABLES.items():
        metric = columns[0][1]
        if any(metric in report for report in reports):
            class_metric = 'iou' if metric == 'miou' else metric
            keys = {name: (metric, group) for name, metric, group in columns}
            found.append(Kind(title, metric, class_metric, {'all': keys['all']} | keys))
    return found


def score_text(score: Score) -> str:
    """Formats a score in percent."""
    return '–' if score is None else f'{score:.1f}'


def change_text(change: Score) -> str:
    """Formats a change of a score with its sign."""
    if change is None:
        return '–'
    return f'{change:+.1f}'.replace('-', '−') if abs(change) >= 0.05 else '0.0'


def by_group(run: RunFolder, kind: Kind) -> Element:
    """Scores by class group after each stage: chart and table."""

    values = {
        title: [report.get(metric, {}).get(group) for report in run.reports]
        for title, (metric, group) in kind.columns.items()
    }
    stages = [report['stage'] for report in run.reports]
    rows = [
        [
            str(stage),
            *(
                Cell(score_text(values[title][i]), 'strong' if title == 'all' else None)
                for title in values
            ),
        ]
        for i, stage in enumerate(stages)
    ]
    averages = [
        score_text(statistics.mean(values[title])) if group == 'all' else ''
        for title, (_, group) in kind.columns.items()
    ]
    chart = charts.stage_chart(kind.title, stages, {group: values[group] for group in GROUPS})
    name = f'scores-{kind.metric}'
    return section(
        f'{kind.title} by stage',
        name,
        element(
            'div',
            element('figure', chart),
            element(
                'div',
                table(
                    f'{kind.title} in percent, after each stage',
                    ['stage', *values],
                    rows,
                    foot=['average', *averages],
                ),
                note(
                    'base: classes of stage 1; novel: classes of later stages; current: classes of '
                    f'the stage itself; past: classes of earlier stages. {NOTES[kind.title]}'
                ),
            ),
            class_='beside',
        ),
    )


def forgetting(run: RunFolder, kind: Kind) -> Element:
    """The forgetting matrix: classes by the stage that learned them, after each stage."""
    groups = statistics.groups_by_first_report(run.reports)
    matrix = statistics.forgetting_matrix(run.reports, groups, kind.class_metric)
    changes = statistics.changes(matrix, groups)
    stages = [report['stage'] for report in run.reports]
    highest = max((score for row in matrix for score in row if score is not None), default=0.0)
    rows = []
    for group, row, change in zip(groups, matrix, changes, strict=True):
        if not group.names:
            continue
        names = ', '.join(group.names)
        count = f'{len(group.names)} class{"es" if len(group.names) > 1 else ""}: '
        head = element('span', f'stage {group.stages} ', element('small', count + names))
        head.set('title', names)
        cells = [
            Cell('' if i < group.first else score_text(score), *_heat(score, highest))
            for i, score in enumerate(row)
        ]
        rows.append([Cell(head), *cells, Cell(change_text(change), _gain_or_loss(change))])
    transfer = statistics.mean(changes)
    text = (
        'Mean score of the classes learned in a stage (row) after that and every later stage '
        '(column). The diagonal shows how well they were learned; scores that fall to the right '
        'show forgetting.'
    )
    if transfer is not None:
        text += f' Backward transfer, the mean change: {change_text(transfer)}.'
    return section(
        f'Forgetting ({kind.title})',
        f'forgetting-{kind.metric}',
        note(text),
        table(
            f'{kind.title} of the classes of a stage after each stage',
            ['learned in', *(f'after {stage}' for stage in stages), 'change'],
            rows,
            class_='heat',
        ),
    )


def _heat(score: Score, highest: float) -> tuple[str | None, str | None]:
    share = None if score is None or highest <= 0 else f'--share:{score / highest:.3f}'
    return (None, None) if share is None else ('score', share)


def _gain_or_loss(change: Score) -> str | None:
    if change is None or abs(change) < 0.05:
        return None
    return 'gain' if change > 0 else 'loss'


def by_class(run: RunFolder, kind: Kind) -> Element:
    """Score of every class after the stage that learned it and after the last stage."""
    groups = statistics.groups_by_first_report(run.reports)
    found = statistics.class_changes(run.reports, groups, kind.class_metric)
    verdicts = [_gain_or_loss(c.change) for c in found if c.change is not None]
    text = 'Every class after the stage that learned it (ring) and after the last stage (dot).'
    if verdicts:
        text += (
            f' Of {len(verdicts)} classes, {verdicts.count("loss")} declined and '
            f'{verdicts.count("gain")} improved.'
        )
    rows = [
        [
            c.name,
            c.group.stages,
            score_text(c.learned),
            score_text(c.last),
            Cell('new' if c.is_new else change_text(c.change), _gain_or_loss(c.change)),
            Cell(_bar(c), 'track'),
        ]
        for c in found
    ]
    return section(
        f'Classes ({kind.title})',
        f'classes-{kind.metric}',
        note(text),
        table(
            f'{kind.title} of each class, largest decline first',
            ['class', 'stage', 'learned', 'last', 'change', Cell('0 to 100', 'track')],
            rows,
            class_='classes',
        ),
    )


def _bar(c: ClassChange) -> Element | None:
    """A bar from the score when learned to the last score, on a scale from 0 to 100."""
    if c.last is None:
        return None
    learned = c.last if c.learned is None else c.learned
    low, high = sorted((learned, c.last))
    bar = element(
        'i',
        class_=f'bar {_gain_or_loss(c.change) or ""}'.strip(),
        style=f'left:{low:.1f}%;width:{high - low:.1f}%',
    )
    ring = element('i', class_='ring', style=f'left:{learned:.1f}%')
    dot = element('i', class_='dot', style=f'left:{c.last:.1f}%')
    return element('div', bar, ring, dot, aria_hidden='true')
