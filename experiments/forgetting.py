"""Which classes are forgotten: what a class keeps, by how surely it was found before the stage.

    python -m experiments.forgetting --data=shapes --workdir=runs/shapes

Not in the paper; it explains differences between its rows. After a stage, a class is found in some
share of its segments (the true positives of PQ). What it keeps through the next stage is the share
found then, over that share. Classes and stages are grouped by how much was found before: what is
missed leaves no pseudo-label, so the next stage teaches that it is background. The runs are those
of `components` and `stop_gradient`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments import command, components, figures, stop_gradient, tables
from experiments.experiment import Experiment, Results
from experiments.sweep import Run

EDGES = (0, 20, 40, 60, 80, 95, 100)  # Percent found before; a group includes its upper edge.


def shares(results: Mapping) -> np.ndarray:
    """Percent of its segments found before and after each later stage, [N, 2].

    One row a class and stage; without those that no image has or that had nothing left to lose.

    Args:
        results: of a panoptic run.
    """
    found = [
        {
            name: 100 * scores['tp'] / (scores['tp'] + scores['fn'])
            for name, scores in stage['per_class'].items()
            if scores['tp'] + scores['fn']
        }
        for stage in results['stages']
    ]
    pairs = [
        (share, after[name])
        for before, after in zip(found, found[1:], strict=False)
        for name, share in before.items()
        if share > 0
    ]
    return np.array(pairs, float).reshape(-1, 2)


def kept(pairs: np.ndarray) -> list[tuple[int, float, float]]:
    """For each group between EDGES: its size, mean percent found before, and percent of it kept.

    Args:
        pairs: [N, 2] as `shares` gives them. An empty group has NaN.
    """
    groups = np.digitize(pairs[:, 0], EDGES[1:-1], right=True)
    summary = []
    for number in range(len(EDGES) - 1):
        group = pairs[groups == number]
        (before, after), count = group.sum(axis=0), len(group)
        summary.append(
            (count, before / count, 100 * after / before) if count else (0, np.nan, np.nan)
        )
    return summary


def more(runs: Sequence[Run], results: Results, folder: Path) -> str:
    """What is kept in every row, and in all of them together, as a table and a figure."""
    rows: dict[str, list[np.ndarray]] = {}
    for run in runs:
        found = results.get(run.folder)
        if found and 'pq' in found['stages'][-1]:  # A semantic run counts pixels, not segments.
            rows.setdefault(run.variant.label, []).append(shares(found))
    if not rows:
        return ''
    pairs = {label: np.concatenate(found) for label, found in rows.items()}
    summaries = {label: kept(found) for label, found in pairs.items()}
    name = runs[0].setting
    figures.save(draw(summaries), folder / f'forgetting-{name}')
    return table(name, summaries | {'all rows': kept(np.concatenate(list(pairs.values())))})


def table(name: str, summaries: Mapping[str, Sequence[tuple[int, float, float]]]) -> str:
    """Percent kept, and in brackets of how many classes and stages."""
    head = [f'{low} to {high} %' for low, high in zip(EDGES, EDGES[1:], strict=False)]
    rows = [
        [label, *(f'{share:.0f} ({count})' if count else '-' for count, _, share in summary)]
        for label, summary in summaries.items()
    ]
    title = f'{name}: percent kept through a stage, by percent of segments found before'
    return tables.table(title, ['', *head], rows)


def draw(summaries: Mapping[str, Sequence[tuple[int, float, float]]]) -> figures.Figure:
    """Percent kept against percent found before; a line a row."""
    lines = {
        label: {before: share for count, before, share in summary if count}
        for label, summary in summaries.items()
    }
    return figures.lines(
        'What a class keeps through a stage',
        {'': lines},
        x_labels=['segments found before the stage, %'],
        y_label='share of them kept, %',
    )


EXPERIMENT = Experiment(
    name='forgetting',
    title='Which classes are forgotten',
    settings=components.PANOPTIC,
    variants=(*components.VARIANTS, stop_gradient.NO_STOP_GRADIENT),
    with_scores=False,
    more=more,
)

if __name__ == '__main__':
    command.main(EXPERIMENT)
