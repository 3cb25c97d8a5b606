"""Log of the counts of every image, from which an interrupted evaluation resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simcis_jax.errors import reading, writing
from simcis_jax.evaluation.tasks import Task


class CountsLog:
    """The counts of each task, summed over images.

    With a file, those of every image are kept in it: one line of JSON per image, after a first line
    that says what is evaluated. Sums of IoU depend on their order, so a resumed evaluation adds
    single images, in the order of an evaluation that was never interrupted.

    Args:
        tasks: what is counted.
        path: the file; None = none.
        evaluated: what decides the counts: model, images, settings. A file about anything else is
            replaced.

    Attributes:
        totals: the sums, one per task.
        num_images: number of images in the sums.

    Raises:
        FileError: the file cannot be read or written.
    """

    def __init__(self, tasks: Sequence[Task], path: Path | None, evaluated: Mapping[str, Any]):
        self._tasks, self._path, self._file = tasks, path, None
        self.totals, self.num_images = [task.zeros() for task in tasks], 0
        if path is None:
            return
        header, size = _line(evaluated), 0
        for number, line in enumerate(_lines(path)):
            if number == 0 and line != header:
                break
            if number > 0:
                try:
                    values = zip(tasks, json.loads(line), strict=True)
                    counts = [task.from_json(value) for task, value in values]
                except (ValueError, TypeError, LookupError, AttributeError):
                    break  # The file is damaged from here on: these images are counted again.
                self._sum(counts)
            size += len(line)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open('ab')
            self._file.truncate(size)
        if size == 0:
            self._write(header)

    def add(self, counts: Sequence[Any]) -> None:
        """Adds the counts of the next image; a killed process loses at most these."""
        self._sum(counts)
        if self._file is not None:
            values = zip(self._tasks, counts, strict=True)
            self._write(_line([task.to_json(value) for task, value in values]))

    def close(self) -> None:
        """Closes the file, which stays."""
        if self._file is not None:
            self._file.close()

    def _sum(self, counts: Sequence[Any]) -> None:
        for i, of_task in enumerate(counts):
            self.totals[i] += of_task
        self.num_images += 1

    def _write(self, line: bytes) -> None:
        with writing(self._path):
            self._file.write(line)
            self._file.flush()


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b'\n'


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file up to one that was cut off while it was written."""
    if not path.exists():
        return
    with reading(path), path.open('rb') as file:
        for line in file:
            if not line.endswith(b'\n'):
                return
            yield line
