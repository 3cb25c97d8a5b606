"""What a page tells beyond the logged numbers: forgetting, changes of classes, the query bank."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

Score = float | None


@dataclasses.dataclass(frozen=True)
class ClassGroup:
    """Classes that were scored for the first time after the same stage."""

    stages: str  # '2', or '1-2' where stage 1 left no scores.
    first: int  # Position of their first report.
    names: tuple[str, ...]


def class_groups(reports: Sequence[Mapping]) -> list[ClassGroup]:
    """The classes of the reports of successive stages, in the order they were learned.

    The first report may be of a later stage than 1, whose model came from elsewhere; its classes
    are one group.
    """
    groups, known = [], set()
    for position, report in enumerate(reports):
        number = report['stage']
        stages = f'1-{number}' if position == 0 and number > 1 else str(number)
        names = tuple(name for name in report['per_class'] if name not in known)
        groups.append(ClassGroup(stages, position, names))
        known.update(names)
    return groups


def mean(scores: Sequence[Score]) -> Score:
    """The mean of those that are there; None if none is."""
    scores = [score for score in scores if score is not None]
    return sum(scores) / len(scores) if scores else None


def difference(before: Score, after: Score) -> Score:
    """What was won; None unless both are there."""
    return None if before is None or after is None else after - before


def class_score(report: Mapping, name: str, metric: str) -> Score:
    """The score of a class in a report; None if it has none."""
    return report['per_class'].get(name, {}).get(metric)


def forgetting_matrix(
    reports: Sequence[Mapping], groups: Sequence[ClassGroup], metric: str
) -> list[list[Score]]:
    """Mean score of the classes of group i (row) after report j (column); None before they came."""
    return [
        [mean([class_score(report, name, metric) for name in group.names]) for report in reports]
        for group in groups
    ]


def changes(matrix: Sequence[Sequence[Score]], groups: Sequence[ClassGroup]) -> list[Score]:
    """Of each group, the last score less the first; None for those that came last."""
    return [
        difference(row[group.first], row[-1]) if group.first < len(row) - 1 else None
        for row, group in zip(matrix, groups, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class ClassChange:
    """A class when it was new, and at the end."""

    name: str
    group: ClassGroup
    learned: Score
    last: Score
    is_new: bool  # It came with the last stage.

    @property
    def change(self) -> Score:
        """What was won since; None for new classes and those without scores."""
        return None if self.is_new else difference(self.learned, self.last)


def class_changes(
    reports: Sequence[Mapping], groups: Sequence[ClassGroup], metric: str
) -> list[ClassChange]:
    """The classes that have scores, largest loss first; those without a change come last."""
    found = [
        ClassChange(
            name,
            group,
            class_score(reports[group.first], name, metric),
            class_score(reports[-1], name, metric),
            group.first == len(reports) - 1,
        )
        for group in groups
        for name in group.names
    ]
    found = [c for c in found if c.learned is not None or c.last is not None]
    return sorted(found, key=lambda c: (c.change is None, c.change or 0.0))


@dataclasses.dataclass(frozen=True)
class StoredClass:
    """What the query bank holds of a class."""

    label: int
    num_entries: int
    spread: float  # Mean distance of the entries to their mean.
    nearest: tuple[tuple[int, float], ...]  # Other classes: label, distance between the means.


def stored_classes(
    queries: np.ndarray, written: np.ndarray, num_nearest: int = 3
) -> list[StoredClass]:
    """The classes of a query bank that have entries, by label. Distances are Euclidean.

    Args:
        queries: [C, K, D] float, a ring of K entries a class.
        written: [C] int, entries ever written.
        num_nearest: other classes to name, nearest first.
    """
    labels = np.flatnonzero(written)
    entries = [queries[label, : written[label]].astype(np.float64) for label in labels]
    means = np.array([kept.mean(axis=0) for kept in entries])
    found = []
    for position, (label, kept) in enumerate(zip(labels, entries, strict=True)):
        distances = np.linalg.norm(means - means[position], axis=1)
        distances[position] = np.inf
        order = np.argsort(distances, kind='stable')[: min(num_nearest, len(labels) - 1)]
        found.append(
            StoredClass(
                label=int(label),
                num_entries=len(kept),
                spread=float(np.linalg.norm(kept - means[position], axis=1).mean()),
                nearest=tuple((int(labels[i]), float(distances[i])) for i in order),
            )
        )
    return found
