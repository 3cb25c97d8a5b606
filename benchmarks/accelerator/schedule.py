"""Runs measurements as subprocesses until the time is up."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent

# What became of a measurement.
MEASURED, FAILED, TIMED_OUT = 'measured', 'failed', 'timed out'
NOT_REACHED, SKIPPED = 'not reached', 'skipped'

SHORTEST = 5.0  # Seconds that must be left to start anything.
ERROR_LINES = 12  # Last lines of stderr to keep of a failed measurement.


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A command that prints its result as JSON in its last line."""

    part: str
    name: str
    command: Sequence[str]
    seconds: float  # After which it is killed.
    preparation: Sequence[str] = ()  # A command that compiles ahead; empty = none.
    needs: Sequence[str] = ()  # Python modules without which it is skipped.
    untimed: bool = False  # Whether it tolerates other processes beside it.


@dataclasses.dataclass
class Result:
    """What became of a measurement."""

    part: str
    name: str
    status: str
    seconds: float = 0.0
    preparation_seconds: float | None = None  # Compiling ahead; None = not done.
    found: Any = None
    error: str = ''


@dataclasses.dataclass
class Schedule:
    """The order and the limits of measurements.

    Every part has a budget; what it does not reach is tried again after the last part, if time is
    left. A part that is not timed runs its measurements all at once. Preparations run in parallel
    beside it; measurements that are timed wait for them and run one after the other.

    Args:
        measurements: in order.
        budgets: seconds of each part.
        seconds: of everything.
        preparation_seconds: after which preparations are killed.
        workers: number of parallel preparations.
        environment: variables of all subprocesses.
        shared: more variables of those that share the device.
        report: called with all results whenever there is a new one.
    """

    measurements: Sequence[Measurement]
    budgets: Mapping[str, float]
    seconds: float
    preparation_seconds: float
    workers: int
    environment: Mapping[str, str]
    shared: Mapping[str, str]
    report: Callable[[Sequence[Result]], None]

    def __post_init__(self):
        self._start = time.monotonic()
        self._results = {
            (m.part, m.name): Result(m.part, m.name, NOT_REACHED) for m in self.measurements
        }
        self._running: set[subprocess.Popen] = set()
        self._prepared: dict[tuple[str, str], Future] = {}

    def run(self) -> list[Result]:
        """Runs everything; returns one result per measurement."""
        preparing, beside = ThreadPoolExecutor(self.workers), ThreadPoolExecutor()
        try:
            self._prepared = {
                (m.part, m.name): preparing.submit(self._prepare, m)
                for m in self.measurements
                if m.preparation and not missing(m)
            }
            for is_retry in (False, True):
                for part in dict.fromkeys(m.part for m in self.measurements):
                    pending = [m for m in self.measurements if m.part == part]
                    pending = [m for m in pending if self._result(m).status == NOT_REACHED]
                    if all(m.untimed for m in pending):
                        futures = {beside.submit(self._measure, m): m for m in pending}
                        for future in as_completed(futures):
                            self._record(futures[future], future.result())
                    else:
                        end = self.seconds if is_retry else self._elapsed() + self.budgets[part]
                        self._run_alone(pending, min(end, self.seconds))
        finally:
            for pool in (preparing, beside):
                pool.shutdown(wait=False, cancel_futures=True)
            for process in list(self._running):
                kill(process)
        return list(self._results.values())

    def _run_alone(self, measurements: Sequence[Measurement], end: float) -> None:
        """Runs measurements that start before a time, with the machine for themselves."""
        waiting = self._prepared.values()
        wait(waiting, timeout=max(0.0, self.preparation_seconds - self._elapsed()))
        wait(waiting, timeout=SHORTEST)  # For the killed ones to end.
        for m in measurements:
            if end - self._elapsed() >= SHORTEST:
                self._record(m, self._measure(m))

    def _measure(self, m: Measurement) -> Result:
        if absent := missing(m):
            return Result(m.part, m.name, SKIPPED, error=f'not installed: {", ".join(absent)}')
        limit = min(m.seconds, self.seconds - self._elapsed())
        environment = self.environment | (self.shared if m.untimed else {})
        return Result(m.part, m.name, *self._execute(m.command, environment, limit))

    def _record(self, m: Measurement, result: Result) -> None:
        done = self._prepared.get((m.part, m.name))
        if done and done.done() and not done.cancelled():
            result.preparation_seconds = done.result()
        self._results[m.part, m.name] = result
        self.report(list(self._results.values()))

    def _result(self, m: Measurement) -> Result:
        return self._results[m.part, m.name]

    def _prepare(self, m: Measurement) -> float | None:
        """Seconds of the preparation; None if it failed or there was no time."""
        left = self.preparation_seconds - self._elapsed()
        if left < SHORTEST:
            return None
        status, seconds, *_ = self._execute(m.preparation, self.environment | self.shared, left)
        return seconds if status == MEASURED else None

    def _execute(
        self, command: Sequence[str], environment: Mapping[str, str], limit: float
    ) -> tuple[str, float, None, Any, str]:
        """The fields of a `Result` from its status on."""
        start = time.monotonic()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | environment,
            start_new_session=True,  # To kill it with its own subprocesses.
        )
        self._running.add(process)
        try:
            output, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            kill(process)
            process.communicate()
            return TIMED_OUT, time.monotonic() - start, None, None, f'after {limit:.0f} s'
        finally:
            self._running.discard(process)
        seconds = time.monotonic() - start
        try:
            if process.returncode == 0:
                return MEASURED, seconds, None, json.loads(output.splitlines()[-1]), ''
        except (ValueError, IndexError):
            errors += 'the last line of its output is not JSON'
        errors = '\n'.join(errors.splitlines()[-ERROR_LINES:])
        return FAILED, seconds, None, None, f'status {process.returncode}: {errors}'

    def _elapsed(self) -> float:
        return time.monotonic() - self._start


def missing(m: Measurement) -> list[str]:
    """The modules that a measurement needs and this Python does not have."""
    return [name for name in m.needs if importlib.util.find_spec(name) is None]


def kill(process: subprocess.Popen) -> None:
    """Kills a process and those that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
