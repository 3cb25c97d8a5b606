"""The paper's numbers, read from paper_results.tsv: one line per table row and setting."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

PATH = Path(__file__).with_name('paper_results.tsv')
NUMBERS = ('base', 'novel', 'all', 'average', 'megabytes')


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """One row of a table as printed in the paper."""

    table: str
    setting: str  # Protocol, such as '100-5'.
    metric: str  # 'pq' or 'miou_reference'.
    row: str
    base: float | None
    novel: float | None
    all: float | None
    average: float | None  # Mean of `all` over the stages.
    megabytes: float | None  # Size of the replay memory.
    note: str  # Known inconsistencies of the printed numbers.


def read(table: str, setting: str | None = None, metric: str | None = None) -> dict[str, PaperRow]:
    """The rows of a table by label, in printed order.

    Args:
        table: number of the table.
        setting: protocol, such as '100-5'; None for all.
        metric: 'pq' or 'miou_reference'; None for all.
    """
    with PATH.open(encoding='utf-8', newline='') as file:
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
