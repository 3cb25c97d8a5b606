"""The training log: losses and other metrics as JSON lines and TensorBoard events."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simcis_jax.errors import InputError, reading, writing
from simcis_jax.runtime.files import write_atomically

FLUSHING = 120  # Seconds after which events are written to the disk.
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
        lines = path.read_text('utf-8', errors='replace').split('\n')
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            numbers = [x for name, x in record.items() if name != 'settings' and x is not None]
            valid = all(isinstance(x, int | float) for x in numbers)
            valid = valid and isinstance(record.get('settings', {}), dict)
            valid = valid and all(isinstance(record[key], int) for key in ('stage', 'step'))
        except (ValueError, AttributeError, KeyError, RecursionError):
            valid = False
        if not valid and number == len(lines):
            break  # No line break follows.
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
        with writing(self._path):
            self._file = self._path.open('a', encoding='utf-8')
        self._events = EventFile(workdir / 'tensorboard' / f'stage_{stage}', first_step)

    def _is_before(self, record: Mapping, first_step: int) -> bool:
        return (record['stage'], record['step']) <= (self._stage, first_step)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_) -> None:
        try:
            self._events.close()
        finally:
            with writing(self._path):
                self._file.close()

    def write(
        self, step: int, numbers: Mapping[str, float], settings: Mapping[str, Any] | None = None
    ) -> None:
        """Adds one record; non-finite values become null, since JSON has no NaN.

        Args:
            step: the step of the stage.
            numbers: what is logged.
            settings: those of the evaluation, if the numbers are its scores.

        Raises:
            FileError: it cannot be written.
        """
        record = {'stage': self._stage, 'step': step}
        record |= {n: value if math.isfinite(value) else None for n, value in numbers.items()}
        record |= {'settings': dict(settings)} if settings is not None else {}
        with writing(self._path):
            self._file.write(json.dumps(record) + '\n')
            self._file.flush()
        self._events.write(step, numbers)


class EventFile:
    """Writes numbers as TensorBoard events, in the thread of the caller.

    The thread of `tensorboardX.SummaryWriter` ends when the disk is full; whoever adds events then
    waits for it forever.

    Args:
        folder: folder of the event files.
        first_step: step to resume from; TensorBoard hides later events of earlier files.
    """

    def __init__(self, folder: Path, first_step: int):
        # Slow: imports PyTorch if installed.
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._folder, self._make_event, self._scalar = folder, Event, summary.scalar
        self._flushed = -math.inf
        start = {'step': first_step + 1, 'wall_time': time.time()}
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = event_file_writer.EventsWriter(f'{folder}/events')
            self._writer.write_event(Event(**start, file_version='brain.Event:2'))
            self._writer.write_event(
                Event(**start, session_log=SessionLog(status=SessionLog.START))
            )

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Adds numbers of a step; raises FileError if they cannot be written."""
        with writing(self._folder):
            for name, value in numbers.items():
                content = self._scalar(name, value)
                event = self._make_event(step=step, wall_time=time.time(), summary=content)
                self._writer.write_event(event)
            if time.monotonic() - self._flushed >= FLUSHING:
                self._writer.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the file; raises FileError if it cannot be written."""
        with writing(self._folder):
            self._writer.close()
