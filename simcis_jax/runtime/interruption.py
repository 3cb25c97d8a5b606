"""SIGTERM and Ctrl-C: finish the current step, write a checkpoint, then exit.

The exit status is the one that shells use for these signals: 143 and 130.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SystemExit):
    """Prints one line and exits with status 128 + the number of the signal."""

    def __init__(self, number: int, place: str):
        super().__init__(128 + number)
        name = signal.Signals(number).name
        print(f'\n{name}: stopped {place}; run the same command again to resume.', file=sys.stderr)


def stop_at_once() -> None:
    """Makes the signals exit at once, for code that has no state to save."""

    def stop(number, _):
        raise Interrupted(number, 'between checkpoints')

    for number in _handled_signals():
        signal.signal(number, stop)


class StopRequest:
    """Context manager in which a signal requests a stop after the current step.

    If no step follows, `Interrupted` is raised at the end of the block. A second signal has its
    previous effect at once. In a multi-process run, a SIGTERM to any process stops all of them
    after the same step.
    """

    def __init__(self):
        self.number: int | None = None
        self._before = {}
        self._num_steps = 0

    def __enter__(self) -> StopRequest:
        self.number = None
        # Only the main thread may set handlers.
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._receive) for number in _handled_signals()
            }
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if error is None and self.number is not None:  # It came after the last step.
            raise Interrupted(self.number, 'between checkpoints')

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """In this block, signals have their previous effect: there is no step to finish.

        Raises:
            Interrupted: a signal came before.
        """
        if self.number is not None:
            raise Interrupted(self.number, 'between checkpoints')
        ours = {number: signal.signal(number, old) for number, old in self._before.items()}
        try:
            yield
        finally:
            for number, handler in ours.items():
                signal.signal(number, handler)

    def after_step(self) -> bool:
        """Whether to stop now; every process must call it once after every step."""
        self._num_steps += 1
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(
            self._num_steps
        ):
            self.number = signal.SIGTERM
        return self.number is not None

    def _receive(self, number, _) -> None:
        self.number = number
        signal.signal(number, self._before[number])
        print(
            f'\n{signal.Signals(number).name}: stopping after this step with a checkpoint.',
            file=sys.stderr,
        )


def _handled_signals() -> tuple[int, ...]:
    """The signals to handle; in multi-process runs, JAX handles SIGTERM."""
    # Counting the processes starts the devices, before the config is read.
    is_alone = not jax.distributed.is_initialized() or jax.process_count() == 1
    return SIGNALS if is_alone else ()
