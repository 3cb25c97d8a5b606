"""Where the time of a row goes: the largest costs in a profile of one warm call, as a table.

    python -m benchmarks.profile --row='train step' --trace=DIR

Operations are added up by the part of the network or of the losses that they belong to, forward
and backward apart. Seconds are those of all threads together, so that on n cores the call takes an
n-th of their sum at best. DIR keeps the trace itself, for Perfetto or TensorBoard.
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
    'row', 'train step', [r for r, sides in ROWS.items() if OURS in sides], 'What to profile.'
)
TRACE = flags.DEFINE_string('trace', '', 'Folder to keep the trace in.')
TOP = flags.DEFINE_integer('top', 20, 'How many costs to print.')

# An instruction of compiled HLO and where in the program it comes from.
INSTRUCTION = re.compile(r'%?([\w.\-]+) = .*?op_name="([^"]*)"')
WRAPPERS = re.compile(r'(transpose|jvp|vmap|checkpoint|jit)\(([^()]*)\)')
CONTROL = {'', 'while', 'body', 'cond', 'closed_call', 'checkpoint', 'shard_map'}


def sources(hlo: str) -> dict[str, str]:
    """Instruction -> the name stack it was traced under, of compiled HLO as text."""
    return {match[1]: match[2] for match in map(INSTRUCTION.search, hlo.splitlines()) if match}


def part_of(stack: str, depth: int = 3) -> str:
    """The part of the program that a name stack belongs to, numbers of layers left out."""
    backward = 'transpose(' in stack
    stack = re.sub(r'^jit\([^()]*\)', '', stack)
    while WRAPPERS.search(stack):
        # A function that was compiled by itself is a detail, a module under a transform is not.
        stack = WRAPPERS.sub(lambda match: '' if match[1] == 'jit' else match[2], stack)
    names = [name for name in stack.split('/') if name not in CONTROL]
    names = [re.sub(r'\d+(_\d+)?$', '*', name.split('.')[-1]) for name in names[:-1]][:depth]
    return ('backward, ' if backward else 'forward, ') + ('/'.join(names) or 'the rest')


def own_times(events: Iterable[tuple[str, float, float]]) -> collections.Counter:
    """Seconds of every name on one thread, without those of the events that lie inside.

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
    """Seconds of all threads by part of the program, from the trace in a folder.

    Args:
        folder: what `jax.profiler.trace` wrote to.
        stacks: see `sources`; what is not in it, such as waiting, does not count.
    """
    path = next(folder.rglob('*.xplane.pb'))
    found = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            events = (
                (dict(e.stats).get('hlo_op', e.name), e.start_ns, e.duration_ns)
                for e in line.events
            )
            for name, seconds in own_times(events).items():
                if name in stacks:
                    found[part_of(stacks[name])] += seconds
    return found


def profile(work: Work, folder: Path) -> tuple[float, collections.Counter]:
    """Seconds of a warm call, and the costs of the next, whose trace is kept in a folder."""
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
    """The largest costs as Markdown."""
    total = sum(found.values())
    lines = ['| part | s of all threads | share |', '|---|---:|---:|']
    for part, seconds in found.most_common(top):
        lines.append(f'| {part} | {seconds:.3f} | {100 * seconds / total:.1f} % |')
    return '\n'.join(lines)


def main(_) -> None:
    """Profiles and prints."""
    configure_malloc()  # As the commands do.
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(TRACE.value or temporary)
        seconds, found = profile(Workload(settings()).rows()[ROW.value](), folder)
    print(f'{ROW.value}: {seconds:.3g} s\n\n{table(found, TOP.value)}')


if __name__ == '__main__':
    app.run(main)
