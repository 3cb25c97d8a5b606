"""Live progress: one line with rate, time left and the newest numbers."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


class Progress:
    """Counts towards a total and prints where things stand.

    On a terminal the line is rewritten in place; elsewhere a line is printed at most every
    `interval` seconds.
    """

    def __init__(self, title: str, total: int, unit: str, *, done: int = 0, interval: float = 10.0):
        self._title, self._total, self._unit, self._interval = title, total, unit, interval
        self._first, self._done = done, done
        self._start = self._printed = time.monotonic()
        self._live = sys.stdout.isatty()

    @property
    def rate(self) -> float:
        """Units a second since the clock started."""
        elapsed = time.monotonic() - self._start
        return (self._done - self._first) / elapsed if elapsed > 0 else 0.0

    def skip(self, count: int = 1) -> None:
        """Counts on in silence and starts the clock anew: what came before compiled."""
        self._done += count
        self._first, self._start = self._done, time.monotonic()

    def advance(self, count: int = 1, numbers: Mapping[str, float] | None = None) -> None:
        """Counts on, and prints if numbers are given, the end is reached or it is time."""
        self._done += count
        now = time.monotonic()
        is_due = now - self._printed >= (0.5 if self._live else self._interval)
        if not (numbers or is_due or self._done >= self._total):
            return
        self._printed = now
        left = (self._total - self._done) / self.rate if self.rate else 0.0
        parts = [
            f'{self._title} {self._done}/{self._total}',
            f'{self.rate:.1f} {self._unit}/s',
            f'left {duration(left)}',
            *(f'{name} {value:.4g}' for name, value in (numbers or {}).items()),
        ]
        end = '\n' if numbers or self._done >= self._total or not self._live else '\r'
        print('  '.join(parts), end=end, flush=True)
