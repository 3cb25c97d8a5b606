"""Statistics computed from a run: forgetting and changes per class."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

Score = float | None


@dataclasses.dataclass(frozen=True)
class ClassGroup:
    """Classes that were evaluated for the first time after the same stage."""

    stages: str  # '2', or '1-2' if stage 1 was not evaluated.
    first: int  # Index of their first report.
    names: tuple[str, ...]


def groups_by_first_report(reports: Sequence[Mapping]) -> list[ClassGroup]:
    """Groups the classes by the report in which they first appear.

    If the run started from a converted or finished stage, the first report may be of a later stage
    than 1; its classes are one group.
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
    """The mean of the scores that are not None; None if there are none."""
    scores = [score for score in scores if score is not None]
    return sum(scores) / len(scores) if scores else None


def difference(before: Score, after: Score) -> Score:
    """The change from `before` to `after`; None if either is None."""
    return None if before is None or after is None else after - before


def class_score(report: Mapping, name: str, metric: str) -> Score:
    """The score of a class in a report; None if it has no score."""
    return report['per_class'].get(name, {}).get(metric)


def forgetting_matrix(
    reports: Sequence[Mapping], groups: Sequence[ClassGroup], metric: str
) -> list[list[Score]]:
    """Mean score of group i (row) in report j (column); None before the group was learned."""
    return [
        [mean([class_score(report, name, metric) for name in group.names]) for report in reports]
        for group in groups
    ]


def changes(matrix: Sequence[Sequence[Score]], groups: Sequence[ClassGroup]) -> list[Score]:
    """Last score minus first score of each group; None for groups of the last report."""
    return [
        difference(row[group.first], row[-1]) if group.first < len(row) - 1 else None
        for row, group in zip(matrix, groups, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class ClassChange:
    """The scores of a class when it was learned and after the last stage."""

    name: str
    group: ClassGroup
    learned: Score
    last: Score
    is_new: bool  # Learned in the last stage.

    @property
    def change(self) -> Score:
        """Last score minus first score; None for new classes and those without scores."""
        return None if self.is_new else difference(self.learned, self.last)


def class_changes(
    reports: Sequence[Mapping], groups: Sequence[ClassGroup], metric: str
) -> list[ClassChange]:
    """The classes with scores, largest decline first; those without a change come last."""
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
