"""SIGTERM and Ctrl-C: the running step ends, a checkpoint is written, then the program stops.

It ends with the status that a shell gives to these signals: 143 and 130.
"""

from __future__ import annotations

import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SystemExit):
    """Ends the program with 128 + the number of the signal, after one line."""

    def __init__(self, number: int, place: str):
        super().__init__(128 + number)
        name = signal.Signals(number).name
        print(f'\n{name}: stopped {place}; the same command goes on from there.', file=sys.stderr)


def stop_at_once() -> None:
    """From now on the signals end the program where it is: where there is nothing to save."""

    def stop(number, _):
        raise Interrupted(number, 'between checkpoints')

    for number in _ours():
        signal.signal(number, stop)


class StopRequest:
    """While entered, a signal asks to stop after the running step; a second one acts at once.

    Several processes stop after the same step, whichever of them got SIGTERM.
    """

    def __init__(self):
        self.number: int | None = None
        self._before = {}
        self._num_steps = 0

    def __enter__(self) -> StopRequest:
        self.number = None
        if threading.current_thread() is threading.main_thread():  # Others may not listen.
            self._before = {number: signal.signal(number, self._receive) for number in _ours()}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def after_step(self) -> bool:
        """Whether to stop now; to be asked once after every step, by all processes."""
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
            f'\n{signal.Signals(number).name}: stopping after this step, with a checkpoint.',
            file=sys.stderr,
        )


def _ours() -> tuple[int, ...]:
    """The signals to listen to: among several processes JAX agrees on SIGTERM, and on no other."""
    return SIGNALS if jax.process_count() == 1 else ()
