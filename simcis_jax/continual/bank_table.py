"""The content of a query bank by class, as a table for the report of a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simcis_jax.types import MemoryTable

COLUMNS = 'class', 'entries', 'pseudo-labels', 'spread', 'separation', 'nearest classes'
NOTE = (
    'Pseudo-labels: number counted before the stage; classes with fewer are replayed more often. '
    'Spread: mean distance of the stored queries to their mean. Separation: distance of this mean '
    'to the nearest mean of another class, divided by the spread; a small value means that replay '
    'can confuse the two classes.'
)


def make_table(bank: Mapping[str, Any], names: Sequence[str]) -> MemoryTable:
    """One row per class that has stored queries.

    Args:
        bank: the arrays of a `QueryBank` by name.
        names: of the classes, by label.
    """
    queries, written, counts = (np.asarray(bank[key]) for key in ('queries', 'written', 'counts'))
    found = stored_classes(queries, written)
    # Least separated first.
    found.sort(key=lambda c: c.nearest[0][1] / max(c.spread, 1e-9) if c.nearest else math.inf)
    rows = []
    for c in found:
        nearest = ', '.join(f'{names[label]} {distance:.2f}' for label, distance in c.nearest)
        ratio = f'{c.nearest[0][1] / c.spread:.2f}' if c.nearest and c.spread > 0 else '–'
        entries = f'{c.num_entries} of {queries.shape[1]}'
        numbers = entries, f'{counts[c.label]:.0f}', f'{c.spread:.2f}', ratio
        rows.append((names[c.label], *numbers, nearest or '–'))
    caption = 'Stored queries per class, least separated first'
    return MemoryTable('Query bank', NOTE, caption, COLUMNS, rows)


@dataclasses.dataclass(frozen=True)
class StoredClass:
    """Statistics of the stored queries of a class."""

    label: int
    num_entries: int
    spread: float  # Mean distance of the queries to their mean.
    nearest: tuple[tuple[int, float], ...]  # (label, distance of means) of other classes.


def stored_classes(
    queries: np.ndarray, written: np.ndarray, num_nearest: int = 3
) -> list[StoredClass]:
    """Statistics of the classes of a query bank that have queries. Distances are Euclidean.

    Args:
        queries: [C, K, D] float, a ring buffer of K queries per class.
        written: [C] int, number of queries ever written.
        num_nearest: number of other classes to list, nearest first.
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
