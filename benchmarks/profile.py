"""Profile of a row: the most expensive parts of one warm call, as a table.

    python -m benchmarks.profile --row='train step' --trace=DIR

Operations are summed by the part of the network or of the losses they belong to, with forward and
backward pass separate. Seconds are summed over threads: on n cores the call takes at least an n-th
of the sum. The trace is kept in DIR, for Perfetto or TensorBoard.
"""

from __future__ import annotations

import collections
import re
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
from absl import app, flags

from benchmarks.our_side import make_call
from benchmarks.row import OURS, ROWS
from benchmarks.settings_flags import settings
from benchmarks.workload import Work, Workload
from simcis_jax.runtime.allocator import configure_malloc

ROW = flags.DEFINE_enum(
    'row', 'train step', [r for r, sides in ROWS.items() if OURS in sides], 'Row to profile.'
)
TRACE = flags.DEFINE_string('trace', '', 'Folder to keep the trace in.')
TOP = flags.DEFINE_integer('top', 20, 'Number of parts to print.')

# An instruction of compiled HLO and the name stack of its source.
INSTRUCTION = re.compile(r'%?([\w.\-]+) = .*?op_name="([^"]*)"')
WRAPPERS = re.compile(r'(transpose|jvp|vmap|checkpoint|jit)\(([^()]*)\)')
CONTROL = {'', 'while', 'body', 'cond', 'closed_call', 'checkpoint', 'shard_map'}


def sources(hlo: str) -> dict[str, str]:
    """Maps each instruction in the text of compiled HLO to its name stack."""
    return {match[1]: match[2] for match in map(INSTRUCTION.search, hlo.splitlines()) if match}


def part_of(stack: str, depth: int = 3) -> str:
    """The part of the program that a name stack belongs to, with layer numbers replaced by *."""
    backward = 'transpose(' in stack
    stack = re.sub(r'^jit\([^()]*\)', '', stack)
    while WRAPPERS.search(stack):
        # Drops the names of jitted functions, keeps those of modules under a transform.
        stack = WRAPPERS.sub(lambda match: '' if match[1] == 'jit' else match[2], stack)
    names = [name for name in stack.split('/') if name not in CONTROL]
    names = [re.sub(r'\d+(_\d+)?$', '*', name.split('.')[-1]) for name in names[:-1]][:depth]
    return ('backward, ' if backward else 'forward, ') + ('/'.join(names) or 'other')


def self_times(events: Iterable[tuple[str, float, float]]) -> collections.Counter:
    """Self time in seconds by name on one thread: without the time of nested events.

    Args:
        events: (name, start, duration) in nanoseconds.
    """
    seconds, open_events = collections.Counter(), []
    for name, start, duration in sorted(events, key=lambda event: (event[1], -event[2])):
        while open_events and start >= open_events[-1][1]:
            open_events.pop()
        if open_events:
            seconds[open_events[-1][0]] -= duration / 1e9
        seconds[name] += duration / 1e9
        open_events.append((name, start + duration))
    return seconds


def costs(folder: Path, stacks: Mapping[str, str]) -> collections.Counter:
    """Seconds by part of the program, summed over threads, from the trace in a folder.

    Args:
        folder: output folder of `jax.profiler.trace`.
        stacks: result of `sources`; events not in it, such as waiting, are not counted.
    """
    path = next(folder.rglob('*.xplane.pb'))
    found = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            events = (
                (dict(e.stats).get('hlo_op', e.name), e.start_ns, e.duration_ns)
                for e in line.events
            )
            for name, seconds in self_times(events).items():
                if name in stacks:
                    found[part_of(stacks[name])] += seconds
    return found


def profile(work: Work, folder: Path) -> tuple[float, collections.Counter]:
    """Seconds of a warm call, and the costs of another one, whose trace is written to `folder`."""
    function, arguments, carries = work
    compiled = function.trace(*arguments).lower().compile()
    call = make_call(compiled, arguments, carries)
    call()
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    with jax.profiler.trace(str(folder)):
        call()
    return seconds, costs(folder, sources(compiled.as_text()))


def table(found: collections.Counter, top: int) -> str:
    """A Markdown table of the `top` most expensive parts."""
    total = sum(found.values())
    lines = ['| part | s, all threads | share |', '|---|---:|---:|']
    for part, seconds in found.most_common(top):
        lines.append(f'| {part} | {seconds:.3f} | {100 * seconds / total:.1f} % |')
    return '\n'.join(lines)


def main(_) -> None:
    """Profiles the row and prints the table."""
    configure_malloc()  # As in the commands.
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(TRACE.value or temporary)
        seconds, found = profile(Workload(settings()).rows()[ROW.value](), folder)
    print(f'{ROW.value}: {seconds:.3g} s\n\n{table(found, TOP.value)}')


if __name__ == '__main__':
    app.run(main)
