"""Files with the counts of every image, from which an interrupted evaluation resumes."""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simcis_jax.errors import reading, writing
from simcis_jax.evaluation.tasks import Task
from simcis_jax.runtime.files import write_atomically

# A file is written when it has this size or the last one is this old, whichever comes first.
CHARACTERS, SECONDS = 1 << 20, 10.0


class CountsLog:
    """The counts of each task, summed over images.

    With a folder, those of every image are kept there in numbered files. Each file is written whole
    and never changed, because object stores cannot append. Its first line says what is evaluated
    and holds a checksum of the others: one line of JSON per image.

    Sums of IoU depend on their order, so a resumed evaluation adds single images, in the order of
    an evaluation that was never interrupted.

    Args:
        tasks: what is counted.
        folder: the folder of the files; None = none.
        evaluated: what decides the counts: model, images in order, settings. Files about anything
            else and damaged files are deleted, so that their images are counted again.

    Attributes:
        totals: the sums, one per task.
        found: positions of the images whose counts were in the files.

    Raises:
        FileError: a file cannot be read, written or deleted.
    """

    def __init__(self, tasks: Sequence[Task], folder: Path | None, evaluated: Mapping[str, Any]):
        self._tasks, self._folder = tasks, folder
        self._evaluated = hashlib.sha256(json.dumps(evaluated).encode()).hexdigest()
        self.totals, self._num_images = [task.zeros() for task in tasks], 0
        self._later: dict[int, list] = {}  # Counts from files, beyond the first that are missing.
        self._lines, self._size, self._written, self._number = [], 0, -float('inf'), 0
        self.found: frozenset[int] = frozenset()
        for path in sorted(folder.glob(f'{"[0-9]" * 6}.json')) if folder else ():
            self._number = int(path.stem) + 1
            counts = self._read(path)
            if counts is None:
                with writing(path):
                    path.unlink()
                continue
            self.found |= counts.keys()
            self._later |= counts
            self._add_later()

    def add(self, counts: Sequence[Any]) -> None:
        """Adds the counts of the next image that is not in `found`.

        The first image is written at once, so that a folder that cannot be written is noticed. A
        killed process loses at most the images of the last `SECONDS`.
        """
        if self._folder is not None:
            values = [task.to_json(x) for task, x in zip(self._tasks, counts, strict=True)]
            self._lines.append(json.dumps([self._num_images, *values]) + '\n')
            self._size += len(self._lines[-1])
            if self._size >= CHARACTERS or time.monotonic() - self._written >= SECONDS:
                self.close()
        self._sum(counts)
        self._add_later()

    def close(self) -> None:
        """Writes the images since the last file; the files stay."""
        if not self._lines:
            return
        lines = ''.join(self._lines)
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f'{self._number:06}.json'
        write_atomically(path, self._header(lines.encode()) + '\n' + lines)
        self._number, self._lines, self._size = self._number + 1, [], 0
        self._written = time.monotonic()

    def _header(self, lines: bytes) -> str:
        return json.dumps({'evaluated': self._evaluated, 'crc32': zlib.crc32(lines)})

    def _read(self, path: Path) -> dict[int, list] | None:
        """The counts of the images in a file, by position; None if it is of no use."""
        with reading(path):
            header, _, lines = path.read_bytes().partition(b'\n')
        if header != self._header(lines).encode():
            return None
        counts = {}
        try:
            for line in lines.splitlines():
                position, *values = json.loads(line)
                values = zip(self._tasks, values, strict=True)
                counts[position] = [task.from_json(value) for task, value in values]
        except (ValueError, TypeError, LookupError, AttributeError):  # Of another version.
            return None
        return counts

    def _add_later(self) -> None:
        while self._num_images in self._later:
            self._sum(self._later.pop(self._num_images))

    def _sum(self, counts: Sequence[Any]) -> None:
        for i, of_task in enumerate(counts):
            self.totals[i] += of_task
        self._num_images += 1
