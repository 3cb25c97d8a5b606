"""One measurement. Standard library only, because the PyTorch side imports this file too."""

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

OURS, EAGER, COMPILED = 'simcis_jax', 'torch eager', 'torch compile'
SIDES = OURS, EAGER, COMPILED

PROCESSOR_TIMES = Path('/proc/stat')
QUIET = 0.05  # Largest share of the machine that other processes may use during a timing.

# Rows of the table, and the sides that have them.
ROWS = {
    'matrix product': (OURS, EAGER),
    # The same network and losses on all sides; the next rows are those of SimCIS here.
    'plain Mask2Former, forward': SIDES,
    'plain Mask2Former, train step': SIDES,
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
    'matching, 10 decoder outputs': (OURS, EAGER),
    'losses, 10 decoder outputs, forward + backward': (OURS, EAGER),
    'pseudo-labels': (OURS,),
    'query bank': (OURS,),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Problem size, the same for all sides."""

    batch: int = 1
    size: int = 640  # Side of an image in pixels.
    classes: int = 150
    targets: int = 20  # Segments per image.
    slots: int = 100  # Padded number of segments per image; simcis_jax only.
    queries: int = 100
    points: int = 12544
    bank_size: int = 80  # Stored queries per class; simcis_jax only.
    devices: int = 1  # More than one are simulated devices that share the cores.
    dtype: str = 'float32'  # Compute dtype of the network.
    pixel_decoder_precision: str = 'highest'  # simcis_jax only.
    repeats: int = 5  # Minimum number of timings; 0 = compile only.


@dataclasses.dataclass
class Measurement:
    """Results of measuring one row on one side."""

    row: str
    side: str
    device: str
    versions: dict[str, str]
    first_seconds: float  # First call, including compilation.
    seconds: list[float]  # Timings of warm calls.
    others: float  # Largest share of the machine that other processes used during a timing.
    # Peak memory of the process in warm calls; on an accelerator, of the device in all calls.
    resident_mib: float | None
    planned_mib: float | None = None  # Arguments, results and temporaries, by the compiler.
    gflop: float | None = None  # Matrix products and convolutions.

    @property
    def median(self) -> float:
        """Median seconds of a warm call."""
        return statistics.median(self.seconds)


def first_and_warm(call: Callable[[], None], repeats: int) -> dict:
    """Times a blocking call: the first call alone, then after a warm-up call `repeats` timings.

    Each timing is the mean over calls that take 0.2 s together. If other processes use the machine,
    up to twice as many timings are taken, and those with the least interference are kept.
    """
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    call()
    _reset_peak()
    timings = []
    num_quiet = 0
    while num_quiet < repeats and len(timings) < 2 * repeats:
        timings.append(_timing(call))
        num_quiet += timings[-1][0] <= QUIET
    kept = sorted(timings)[:repeats]
    return dict(
        first_seconds=first,
        seconds=[seconds for _, seconds in kept],
        others=kept[-1][0] if kept else 0.0,
        resident_mib=_peak_resident_mib(),
    )


def _timing(call: Callable[[], None]) -> tuple[float, float]:
    """Share of the machine that other processes used, and mean seconds per call."""
    count, start, others = 0, time.perf_counter(), _others_seconds()
    while not count or time.perf_counter() - start < 0.2:
        call()
        count += 1
    seconds = time.perf_counter() - start
    share = (_others_seconds() - others) / (seconds * os.cpu_count())
    return max(0.0, share), seconds / count


def _others_seconds() -> float:
    """CPU time of other processes and virtual machines so far; 0 if it is unknown (not Linux)."""
    if not PROCESSOR_TIMES.exists():
        return 0.0
    # user, nice, system, idle, iowait, irq, softirq, steal; guests count as user.
    fields = [int(x) for x in PROCESSOR_TIMES.read_text().split('\n', 1)[0].split()[1:9]]
    own = os.times()
    busy = sum(fields) - fields[3] - fields[4]
    return busy / os.sysconf('SC_CLK_TCK') - own.user - own.system


def _reset_peak() -> None:
    """Resets the peak of resident memory, so that it excludes compilation."""
    if Path('/proc/self/clear_refs').exists():
        Path('/proc/self/clear_refs').write_text('5')


def _peak_resident_mib() -> float | None:
    status = Path('/proc/self/status')  # Linux only.
    found = re.search(r'VmHWM:\s*(\d+) kB', status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else None


def read_task() -> tuple[str, str, Settings]:
    """Row, side and settings, from the command line of the measuring process."""
    row, side, settings = sys.argv[1:]
    return row, side, Settings(**json.loads(settings))


def print_result(measurement: Measurement) -> None:
    """Prints the measurement as JSON, for the process that reads the last line."""
    print(json.dumps(dataclasses.asdict(measurement)), flush=True)
