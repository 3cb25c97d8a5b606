"""Where the time of training goes: speed, waiting for data, checkpoints, evaluations, memory."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Iterator

from simcis_jax.runtime import devices

GIB = 2**30


class StepClock:
    """Measures the steps between two log entries.

    Args:
        batch_size: images per step, over all devices.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Begins to measure."""
        self._start, self._steps = time.monotonic(), 0
        self._seconds = collections.Counter()

    @contextlib.contextmanager
    def measure(self, what: str) -> Iterator[None]:
        """Adds the time of a block to 'data', 'checkpoint' or 'evaluation'."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds[what] += time.monotonic() - start

    def step(self) -> None:
        """Counts a step."""
        self._steps += 1

    def numbers(self) -> dict[str, float]:
        """The measurements since the last call, by the names under which they are logged.

        Steps per second leave out checkpoints and evaluations. The caller waits for the device
        first.
        """
        spent = self._seconds
        training = time.monotonic() - self._start - spent['checkpoint'] - spent['evaluation']
        numbers = {f'{name}_seconds': spent[name] for name in ('checkpoint', 'evaluation')}
        numbers |= {f'memory_{name}_gib': size / GIB for name, size in devices.memory().items()}
        if self._steps:
            rate = self._steps / training
            numbers |= {
                'steps_per_second': rate,
                'images_per_second': rate * self._batch_size,
                'data_wait': spent['data'] / training,
            }
        self.restart()
        return numbers
