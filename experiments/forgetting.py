"""Which classes are forgotten: the recall that a class keeps, by its recall before the stage.

    python -m experiments.forgetting --data=shapes --workdir=runs/shapes

Not in the paper; it explains differences between the rows of its tables. The recall of a class is
the share of its segments that are found (true positives of PQ). The recall after the next stage,
relative to the recall before, is the share that the class keeps. Pairs of class and stage are
grouped by the recall before, because a segment that the teacher misses has no pseudo-label and is
then trained as background. The runs are those of `components` and `stop_gradient`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments import command, components, figures, stop_gradient, tables
from experiments.experiment import Experiment, Results
from experiments.sweep import Run

EDGES = (0, 20, 40, 60, 80, 95, 100)  # Recall before, in percent; a group includes its upper edge.


def recall_pairs(results: Mapping) -> np.ndarray:
    """Recall in percent before and after a stage, [N, 2]: one row per class and later stage.

    Classes without segments in the validation images, or without recall before, are left out.

    Args:
        results: results of a panoptic run.
    """
    recalls = [
        {
            name: 100 * scores['tp'] / (scores['tp'] + scores['fn'])
            for name, scores in stage['per_class'].items()
            if scores['tp'] + scores['fn']
        }
        for stage in results['stages']
    ]
    pairs = [
        (recall, after[name])
        for before, after in zip(recalls, recalls[1:], strict=False)
        for name, recall in before.items()
        if recall > 0
    ]
    return np.array(pairs, float).reshape(-1, 2)


def kept(pairs: np.ndarray) -> list[tuple[int, float, float]]:
    """For each group between EDGES: its size, mean recall before, and percent of it kept.

    Args:
        pairs: [N, 2], see `recall_pairs`. The means of an empty group are NaN.
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


def analyze(runs: Sequence[Run], results: Results, folder: Path) -> str:
    """A table and a figure of what each variant keeps, with all seeds pooled."""
    rows: dict[str, list[np.ndarray]] = {}
    for run in runs:
        found = results.get(run.folder)
        if found and 'pq' in found['stages'][-1]:  # Semantic runs have no segments to count.
            rows.setdefault(run.variant.label, []).append(recall_pairs(found))
    if not rows:
        return ''
    pairs = {label: np.concatenate(found) for label, found in rows.items()}
    summaries = {label: kept(found) for label, found in pairs.items()}
    name = runs[0].setting
    figures.save(draw(summaries), folder / f'forgetting-{name}')
    return table(name, summaries | {'all rows': kept(np.concatenate(list(pairs.values())))})


def table(name: str, summaries: Mapping[str, Sequence[tuple[int, float, float]]]) -> str:
    """Percent of the recall that is kept; in brackets the number of pairs of class and stage."""
    head = [f'{low} to {high} %' for low, high in zip(EDGES, EDGES[1:], strict=False)]
    rows = [
        [label, *(f'{share:.0f} ({count})' if count else '-' for count, _, share in summary)]
        for label, summary in summaries.items()
    ]
    title = f'{name}: percent kept through a stage, by percent of segments found before'
    return tables.table(title, ['', *head], rows)


def draw(summaries: Mapping[str, Sequence[tuple[int, float, float]]]) -> figures.Figure:
    """Plots the percentage kept over the recall before the stage, one line per variant."""
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
    analyze=analyze,
)

if __name__ == '__main__':
    command.main(EXPERIMENT)
