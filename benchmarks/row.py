"""One measurement. Only the standard library is used: the peer's Python reads this file, too."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

OURS, EAGER, COMPILED = SIDES = 'simcis_jax', 'torch eager', 'torch compile'

PROCESSOR_TIMES = Path('/proc/stat')
QUIET = 0.05  # Others may use this share of the machine.

# What is measured, and on which sides.
ROWS = {
    'matrix product': (OURS, EAGER),
    'evaluation forward': SIDES,
    'train step': SIDES,
    'train step, teacher + CSL + VQ': (OURS,),
    'backbone, forward': (OURS, EAGER),
    'backbone, forward + backward': (OURS, EAGER),
    'pixel decoder, forward': (OURS, EAGER),
    'pixel decoder, forward + backward': (OURS, EAGER),
    'deformable attention, 1 of 6, forward': (OURS, EAGER),
    'deformable attention, 1 of 6, forward + backward': (OURS, EAGER),
    'decoder, forward': (OURS, EAGER),
    'decoder, forward + backward': (OURS, EAGER),
    'matching, 10 layers': (OURS, EAGER),
    'losses, 10 layers, forward + backward': (OURS, EAGER),
    'pseudo-labels': (OURS,),
    'query bank': (OURS,),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The size of the work; the same for both sides."""

    batch: int = 1
    size: int = 640  # Side of an image in pixels.
    classes: int = 150
    targets: int = 20  # Segments of an image.
    slots: int = 100  # Room for segments of an image; only ours has slots.
    queries: int = 100
    points: int = 12544
    bank_size: int = 80  # Stored queries of a class; only ours has a bank.
    devices: int = 1  # More are simulated ones that share the cores.
    dtype: str = 'float32'  # Of the network's products.
    repeats: int = 5  # At least so many timings; 0 = compile only.


@dataclasses.dataclass
class Measurement:
    """What one process found."""

    row: str
    side: str
    device: str
    versions: dict[str, str]
    first_seconds: float  # First call, compilation included.
    seconds: list[float]  # Of a warm call.
    others: float  # Share of the machine that other processes used in the worst of them.
    # Peak of the whole process in the warm calls; on an accelerator of its memory, in all calls.
    resident_mib: float | None
    planned_mib: float | None = None  # Arguments, results and temporaries as the compiler says.
    gflop: float | None = None  # Of products and convolutions.

    @property
    def median(self) -> float:
        """Seconds of a warm call."""
        return statistics.median(self.seconds)


def first_and_warm(call: Callable[[], None], repeats: int) -> dict:
    """Times a call that returns when its work is done; the first and the second are no timings.

    A timing is the mean of as many calls as fill a fifth of a second. On a machine that is shared
    up to twice as many are taken, and those kept that others disturbed least.
    """
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    call()
    _reset_peak()
    timings = []
    while sum(others <= QUIET for others, _ in timings) < repeats > len(timings) / 2:
        timings.append(_timing(call))
    kept = sorted(timings)[:repeats]
    return dict(
        first_seconds=first,
        seconds=[seconds for _, seconds in kept],
        others=kept[-1][0],
        resident_mib=_peak_resident_mib(),
    )


def _timing(call: Callable[[], None]) -> tuple[float, float]:
    """The share of the machine that other processes used, and the seconds of a call."""
    count, start, others = 0, time.perf_counter(), _others_seconds()
    while not count or time.perf_counter() - start < 0.2:
        call()
        count += 1
    seconds = time.perf_counter() - start
    share = (_others_seconds() - others) / (seconds * os.cpu_count())
    return max(0.0, share), seconds / count


def _others_seconds() -> float:
    """Processor time of other processes and machines so far; Linux only, 0 elsewhere."""
    if not PROCESSOR_TIMES.exists():
        return 0.0
    # user, nice, system, idle, iowait, irq, softirq, steal; guests count as user.
    fields = [int(x) for x in PROCESSOR_TIMES.read_text().split('\n', 1)[0].split()[1:9]]
    own = os.times()
    busy = sum(fields) - fields[3] - fields[4]
    return busy / os.sysconf('SC_CLK_TCK') - own.user - own.system


def _reset_peak() -> None:
    """Compilation needs much memory once; what counts is what a step needs."""
    if Path('/proc/self/clear_refs').exists():
        Path('/proc/self/clear_refs').write_text('5')


def _peak_resident_mib() -> float | None:
    status = Path('/proc/self/status')  # Linux only.
    found = re.search(r'VmHWM:\s*(\d+) kB', status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else None


def read_task() -> tuple[str, str, Settings]:
    """Row, side and settings, from the command line of a process that measures one row."""
    row, side, settings = sys.argv[1:]
    return row, side, Settings(**json.loads(settings))


def hand_back(measurement: Measurement) -> None:
    """The last line that the process prints."""
    print(json.dumps(dataclasses.asdict(measurement)), flush=True)
