"""The training log: losses and other metrics as JSON lines and TensorBoard events."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simcis_jax.errors import InputError, reading
from simcis_jax.runtime.files import write_atomically

# What is logged besides the losses; scores begin with `val_`.
MEASURES = {
    'stage', 'step', 'settings', 'learning_rate', 'gradient_norm', 'targets', 'dropped_segments',
    'nonfinite_costs', 'skipped_steps', 'steps_per_second', 'images_per_second', 'data_wait',
    'checkpoint_seconds', 'evaluation_seconds', 'memory_in_use_gib', 'memory_peak_gib',
}  # fmt: skip


def is_loss(name: str) -> bool:
    """Whether a metric is the total loss or one of its terms, be it of any method."""
    return name not in MEASURES and not name.startswith('val_')


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl in order; empty if there is no such file.

    They hold numbers, and those of scores the evaluation settings they were made with, `settings`.
    An incomplete last line, which a run may still be writing, is left out.

    Raises:
        InputError: a line is not a record.
        FileError: the file cannot be read.
    """
    if not path.exists():
        return []
    with reading(path):
        lines = path.read_text('utf-8', errors='replace').splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith('}') and number == len(lines):
            break
        try:
            record = json.loads(line)
            numbers = [x for name, x in record.items() if name != 'settings' and x is not None]
            valid = all(isinstance(x, int | float) for x in numbers)
            valid = valid and isinstance(record.get('settings', {}), dict)
            valid = valid and all(isinstance(record[key], int) for key in ('stage', 'step'))
        except (ValueError, AttributeError, KeyError):
            valid = False
        if not valid:
            raise InputError(f'{path}: line {number} is not a record of losses; delete this line.')
        records.append(record)
    return records


class MetricsLog:
    """Writes metrics of one stage as JSON lines and TensorBoard events.

    Args:
        workdir: folder of the run.
        stage: number of the stage.
        first_step: step to resume from; later records of the stage are deleted.
    """

    def __init__(self, workdir: Path, stage: int, first_step: int):
        self._stage, self._path = stage, workdir / 'metrics.jsonl'
        if self._path.exists():
            # A killed run may have logged steps after its last checkpoint; they are repeated.
            kept = [r for r in read_metrics(self._path) if self._is_before(r, first_step)]
            write_atomically(self._path, ''.join(json.dumps(record) + '\n' for record in kept))
        self._file = self._path.open('a', encoding='utf-8')
        from tensorboardX import SummaryWriter  # Slow: imports PyTorch if installed.

        self._events = SummaryWriter(
            str(workdir / 'tensorboard' / f'stage_{stage}'), purge_step=first_step + 1
        )

    def _is_before(self, record: Mapping, first_step: int) -> bool:
        return (record['stage'], record['step']) <= (self._stage, first_step)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self._events.close()

    def write(
        self, step: int, numbers: Mapping[str, float], settings: Mapping[str, Any] | None = None
    ) -> None:
        """Adds one record; non-finite values become null, since JSON has no NaN.

        Args:
            step: the step of the stage.
            numbers: what is logged.
            settings: those of the evaluation, if the numbers are its scores.
        """
        record = {'stage': self._stage, 'step': step}
        record |= {n: value if math.isfinite(value) else None for n, value in numbers.items()}
        record |= {'settings': dict(settings)} if settings is not None else {}
        self._file.write(json.dumps(record) + '\n')
        self._file.flush()
        for name, value in numbers.items():
            self._events.add_scalar(name, value, step)
