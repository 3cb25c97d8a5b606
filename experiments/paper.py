"""The numbers of the paper, in paper_results.tsv: one line a row of a table and setting."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

PATH = Path(__file__).with_name('paper_results.tsv')
NUMBERS = ('base', 'novel', 'all', 'average', 'megabytes')


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """A row as printed."""

    table: str
    setting: str  # Protocol, such as '100-5'.
    metric: str  # 'pq' or 'miou_reference'.
    row: str
    base: float | None
    novel: float | None
    all: float | None
    average: float | None  # Over stages of `all`.
    megabytes: float | None  # That the replayed take.
    note: str  # What does not add up.


def read(table: str, setting: str | None = None, metric: str | None = None) -> dict[str, PaperRow]:
    """The rows of a table by name, in their order.

    Args:
        table: its number.
        setting: None = any.
        metric: None = any.
    """
    with PATH.open(newline='') as file:
        lines = list(csv.DictReader(file, delimiter='\t'))
    return {
        line['row']: PaperRow(
            **{key: line[key] for key in ('table', 'setting', 'metric', 'row', 'note')},
            **{key: float(line[key]) if line[key] else None for key in NUMBERS},
        )
        for line in lines
        if line['table'] == table
        and setting in (None, line['setting'])
        and metric in (None, line['metric'])
    }
