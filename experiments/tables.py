"""Markdown tables: mean and deviation over the finished seeds, next to the paper's numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from experiments import provenance
from experiments.paper import PaperRow
from experiments.scores import COLUMNS, TITLES, Summary, summarise
from experiments.sweep import Run

PAPER_COLUMNS = ('base', 'novel', 'all', 'average')


@dataclasses.dataclass(frozen=True)
class Row:
    """The scores of one variant in one setting and metric."""

    label: str
    scores: Mapping[int, Mapping[str, float | None]]  # Seed -> column -> percent.
    paper: PaperRow | None = None
    megabytes: float | None = None  # Size of the replay memory, of the first seed.

    def summary(self, column: str) -> Summary | None:
        """Mean and standard deviation of a column over the seeds."""
        return summarise([scores[column] for scores in self.scores.values()])


def markdown(title: str, rows: Sequence[Row], source: str = '') -> str:
    """A table with a title, followed by notes about inconsistencies in the paper's numbers.

    Columns without any number are left out; an empty cell is '-'.

    Args:
        title: title of the table.
        rows: rows in order.
        source: where the paper's numbers are printed, such as 'table 4, ADE20K 100-5'.
    """
    ours = [c for c in COLUMNS if any(row.summary(c) for row in rows)] or ['base', 'novel', 'all']
    printed = [row.paper for row in rows if row.paper]
    papers = [c for c in PAPER_COLUMNS if any(getattr(row, c) is not None for row in printed)]
    with_storage = any(row.megabytes is not None for row in rows)
    paper_storage = any(row.megabytes is not None for row in printed)
    notes = list(dict.fromkeys(row.note for row in printed if row.note))
    head = ['', *(TITLES[c] for c in ours)]
    head += ['replayed MB'] * with_storage + ['seeds']
    head += [f'paper: {TITLES[c]}' for c in papers] + ['paper: MB'] * paper_storage
    lines = []
    for row in rows:
        cells = [_mark(row, notes)]
        cells += [str(row.summary(c) or '-') for c in ours]
        if with_storage:
            cells.append('-' if row.megabytes is None else f'{row.megabytes:.2f}')
        cells.append(', '.join(map(str, row.scores)) or '-')
        cells += [_number(row.paper, c) for c in papers]
        if paper_storage:
            cells.append(_number(row.paper, 'megabytes'))
        lines.append(cells)
    text = table(title, head, lines)
    text += f'\nPaper: {source}.\n' if papers else ''
    return text + ''.join(f'\n[{n}] Paper: {note}.\n' for n, note in enumerate(notes, start=1))


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with a title: labels in the first column, numbers in the others."""
    rule = ['---', *['---:'] * (len(head) - 1)]
    return '\n'.join([f'### {title}', '', *map(line, [head, rule, *rows]), ''])


def _mark(row: Row, notes: Sequence[str]) -> str:
    note = row.paper.note if row.paper else ''
    return row.label + (f' [{notes.index(note) + 1}]' if note else '')


def _number(row: PaperRow | None, column: str) -> str:
    value = getattr(row, column) if row else None
    return '-' if value is None else f'{value:.1f}'


def line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return '| ' + ' | '.join(cells) + ' |'


def run_list(finished: Sequence[Run], changes: Sequence[str]) -> str:
    """The provenance of the numbers: one row per finished run.

    Args:
        finished: the finished runs.
        changes: overrides from the command line, such as '--config.data.size=128'.
    """
    head = ['run', 'seed', 'stage 1 from', 'commit', 'hardware', 'jax', 'hours']
    text = ['### Runs', '', line(head), line(['---'] * (len(head) - 1) + ['---:'])]
    for run in finished:
        record = provenance.read(run.folder)
        cells = [
            f'{run.setting}, {run.variant.label}',
            str(run.seed),
            provenance.first_stage_source(run.folder),
            *(str(record.get(key, '-')) for key in ('commit', 'hardware', 'jax')),
            f'{record["hours"]:.2f}' if 'hours' in record else '-',
        ]
        text.append(line(cells))
    if changes:
        text += ['', 'All runs with ' + ' '.join(f'`{change}`' for change in changes) + '.']
    return '\n'.join(text) + '\n'
