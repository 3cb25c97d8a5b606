"""Progress output: one line with the rate, the remaining time and the latest metrics."""

from __future__ import annotations

import collections
import contextlib
import sys
import time
from collections.abc import Iterator, Mapping

WINDOW = 60.0  # Seconds over which the rate is measured.


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


class Progress:
    """Counts finished units of work and prints the progress.

    On a terminal the line is updated in place; elsewhere a new line is printed at most every
    `interval` seconds. With `only_if_slow`, work of less than one second prints nothing. If later
    work will take `after` more units, the time left for all of it is printed as well. It includes
    `seconds_after`, the time of other work to come, which may be set at any time.
    """

    def __init__(
        self,
        title: str,
        total: int,
        unit: str,
        *,
        done: int = 0,
        after: int = 0,
        seconds_after: float = 0.0,
        interval: float = 10.0,
        only_if_slow: bool = False,
    ):
        self._title, self._total, self._unit, self._interval = title, total, unit, interval
        self._done, self._after, self.seconds_after = done, after, seconds_after
        self._printed = now = time.monotonic()
        self._marks = collections.deque([(now, done)])  # Times and units done, of the window.
        self._live, self._width = sys.stdout.isatty(), 0
        self._silent_until = now + (1.0 if only_if_slow else 0.0)

    @property
    def rate(self) -> float:
        """Units per second over the last minute."""
        start, first = self._marks[0]
        elapsed = time.monotonic() - start
        return (self._done - first) / elapsed if elapsed > 0 else 0.0

    def skip(self, count: int = 1) -> None:
        """Counts without printing and restarts the clock, to exclude compilation from the rate."""
        self._done += count
        self._marks = collections.deque([(time.monotonic(), self._done)])

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The time of the block does not count for the rate."""
        start = time.monotonic()
        yield
        spent = time.monotonic() - start
        self._marks = collections.deque((at + spent, done) for at, done in self._marks)

    def advance(self, count: int = 1, numbers: Mapping[str, float] | None = None) -> None:
        """Counts, and prints if there are numbers, the total is reached or a line is due."""
        self._done += count
        now = time.monotonic()
        if now - self._marks[-1][0] >= WINDOW / 60:
            self._marks.append((now, self._done))
        while len(self._marks) > 2 and now - self._marks[1][0] >= WINDOW:
            self._marks.popleft()
        if now < self._silent_until:
            return
        is_due = now - self._printed >= (0.5 if self._live else self._interval)
        if not (numbers or is_due or self._done >= self._total):
            return
        self._printed = now
        parts = [
            f'{self._title} {self._done}/{self._total}',
            f'{self.rate:.1f} {self._unit}/s',
            f'left {duration(self._seconds_for(self._total - self._done))}',
        ]
        if self._after or self.seconds_after:
            seconds = self._seconds_for(self._total - self._done + self._after)
            parts.append(f'run left {duration(seconds + self.seconds_after)}')
        parts += [f'{name} {value:.4g}' for name, value in (numbers or {}).items()]
        end = '\n' if numbers or self._done >= self._total or not self._live else '\r'
        line = '  '.join(parts)
        print(line.ljust(self._width if self._live else 0), end=end, flush=True)
        self._width = len(line) if end == '\r' else 0  # That a shorter line has to cover.

    def _seconds_for(self, units: int) -> float:
        return units / self.rate if self.rate else 0.0
