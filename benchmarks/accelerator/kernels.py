"""The kernels of a train step on the device, and the time that the device was idle between them."""

from __future__ import annotations

import collections
import tempfile
from collections.abc import Iterable
from pathlib import Path

import jax

from benchmarks.our_side import make_call
from benchmarks.profile import part_of, sources
from benchmarks.workload import Work

STEPS = 3
TOP = 40  # Kernels and parts in the result; a report shows the first ten.


def measure(work: Work) -> dict:
    """Traces a few warm calls; see `summary`."""
    function, arguments, carries = work
    compiled = function.trace(*arguments).lower().compile()
    call = make_call(compiled, arguments, carries)
    call()
    call()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                call()
        path = next(Path(folder).rglob('*.xplane.pb'))
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
        events, stacks = device_events(planes), sources(compiled.as_text() or '')
        return summary(events, STEPS) | {'parts': parts(events, stacks, STEPS)}


def device_events(planes: Iterable) -> list[tuple[str, str, float, float]]:
    """Kernels on the first device as (kernel, HLO instruction, start, end) in nanoseconds.

    On a GPU they are the events of its streams, on a TPU those of its operations. On CPU, where the
    host executes the program, they are events that belong to an HLO instruction.
    """
    planes = {plane.name: plane for plane in planes}
    names = sorted(name for name in planes if name.startswith('/device:'))
    lines = list(planes[names[0] if names else '/host:CPU'].lines)
    chosen = [x for x in lines if x.name.startswith('Stream')]
    chosen = chosen or [x for x in lines if x.name == 'XLA Ops'] or lines
    found = []
    for line in chosen:
        for event in line.events:
            operation = dict(event.stats).get('hlo_op')
            if names or operation:
                end = event.start_ns + event.duration_ns
                found.append((event.name, str(operation or event.name), event.start_ns, end))
    return found


def summary(events: Iterable[tuple[str, str, float, float]], steps: int) -> dict:
    """Milliseconds and kernels per step, the idle share of the device, and the largest kernels."""
    totals, counts = collections.Counter(), collections.Counter()
    busy, last, first = 0.0, None, None
    for name, _, start, end in sorted(events, key=lambda event: event[2]):
        totals[name] += end - start
        counts[name] += 1
        first = start if first is None else first
        busy += max(0.0, end - max(start, last if last is not None else start))
        last = end if last is None else max(last, end)
    if first is None:
        return {'kernels': 0, 'ms': 0.0, 'idle': None, 'largest': []}
    return {
        'kernels': sum(counts.values()) / steps,
        'ms': (last - first) / 1e6 / steps,
        'idle': 1 - busy / max(last - first, 1.0),
        'largest': [
            {'kernel': name, 'ms': total / 1e6 / steps, 'calls': counts[name] / steps}
            for name, total in totals.most_common(TOP)
        ],
    }


def parts(
    events: Iterable[tuple[str, str, float, float]], stacks: dict[str, str], steps: int
) -> list[dict]:
    """The parts of the program that take longest, as in `benchmarks.profile`."""
    found = collections.Counter()
    for _, operation, start, end in events:
        found[part_of(stacks.get(operation, ''))] += (end - start) / 1e6 / steps
    return [{'part': name, 'ms': total} for name, total in found.most_common(TOP)]
