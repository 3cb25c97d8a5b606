"""Counts per class that add over images and hosts, and are written as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np


class ClassCounts:
    """Base of a frozen dataclass whose fields are arrays [C]."""

    @classmethod
    def zeros(cls, num_classes: int) -> Self:
        """Counts of nothing, for C = `num_classes`."""
        kinds = [field.metadata.get('dtype', np.int64) for field in dataclasses.fields(cls)]
        return cls(*(np.zeros(num_classes, kind) for kind in kinds))

    def __add__(self, other: Self) -> Self:
        return type(self)(
            *(
                getattr(self, field.name) + getattr(other, field.name)
                for field in dataclasses.fields(self)
            )
        )

    def to_json(self) -> list[list]:
        """One row [class, count, count, ...] for every class that has a count."""
        columns = [getattr(self, field.name) for field in dataclasses.fields(self)]
        classes = np.flatnonzero(np.any(columns, axis=0))
        return [[int(c), *(column[c].item() for column in columns)] for c in classes]

    @classmethod
    def from_json(cls, rows: Sequence[Sequence], num_classes: int) -> Self:
        """Reads what `to_json` made; the numbers are equal to the last bit."""
        counts = cls.zeros(num_classes)
        for label, *values in rows:
            for field, value in zip(dataclasses.fields(cls), values, strict=True):
                getattr(counts, field.name)[label] = value
        return counts
