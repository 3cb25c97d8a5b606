"""The results of `benchmarks.accelerator_check` as JSON and Markdown."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import row
from benchmarks.accelerator.schedule import MEASURED, Result
from simcis_jax.runtime.files import write_atomically

SEPARATOR = ' | '
SHOWN = 10  # Rows of a profile; the others are in the JSON file.


def key(name: str, side: str, size: str) -> str:
    """The name of a measurement of speed."""
    return SEPARATOR.join((name, side, size))


def write(out: Path, header: Mapping[str, Any], results: Sequence[Result]) -> None:
    """Writes check.json and check.md in a folder."""
    content = dict(header) | {'results': [dataclasses.asdict(r) for r in results]}
    write_atomically(out / 'check.json', json.dumps(content, indent=1) + '\n')
    write_atomically(out / 'check.md', markdown(header, results))


def markdown(header: Mapping[str, Any], results: Sequence[Result]) -> str:
    """The report, with a section for every part that was asked for."""
    found = {name: [r for r in results if r.part == name] for name in SECTIONS}
    lines = ['# Check of an accelerator', '', ', '.join(f'{k} {v}' for k, v in header.items())]
    for name, section in SECTIONS.items():
        measured = [r for r in found[name] if r.status == MEASURED]
        if found[name]:
            lines += ['', f'## {name.capitalize()}', '', *_readable(section, measured)]
        for r in found[name]:
            if r.status != MEASURED:
                why = f': {" ".join(r.error.split())}' if r.error else ''
                lines.append(f'- {r.name.replace(SEPARATOR, ", ")}: **{r.status}**{why}')
    return '\n'.join(lines) + '\n'


def _readable(section: Callable, results: Sequence[Result]) -> list[str]:
    try:
        return section(results)
    except Exception as error:  # The measurements that follow must not be lost.
        return [f'these results are in check.json only: {type(error).__name__}: {error}', '']


def machine(results: Sequence[Result]) -> list[str]:
    """The device and the versions."""
    return [', '.join(f'{k} {v}' for k, v in r.found.items()) for r in results]


def parity(results: Sequence[Result]) -> list[str]:
    """Errors relative to the published code, by group of arrays."""
    rows = [
        (
            r.name,
            group,
            f'{x["within"]} of {x["arrays"]}',
            f'{x["median"]:.1e}' if x['arrays'] else '',
            f'{x["worst"][1]:.1e} {x["worst"][0]}' if x['arrays'] else '',
            f'{x["identical"]} of {x["integer_arrays"]}',
        )
        for r in results
        for group, x in r.found.items()
    ]
    titles = 'precision', 'arrays', 'within 1e-4', 'median error', 'worst', 'integers identical'
    return table(titles, rows)


def speed(results: Sequence[Result]) -> list[str]:
    """Time, memory and share of the measured peak, beside PyTorch."""
    peaks = next((r.found for r in results if SEPARATOR not in r.name), {})
    lines = [f'matrix product, {name}: {x:.3g} TFLOP/s  ' for name, x in peaks.items()]
    found = {tuple(r.name.split(SEPARATOR)): r for r in results if SEPARATOR in r.name}
    rows = []
    for (name, side, size), r in found.items():
        x, seconds = r.found, statistics.median(r.found['seconds'])
        ours, eager = found.get((name, row.OURS, size)), found.get((name, row.EAGER, size))
        gflop = x.get('gflop') or (eager.found['gflop'] if eager and side != row.OURS else None)
        batch, dtype = size.removeprefix('batch ').split(', ')
        peak = peaks.get('float32, highest' if dtype == 'float32' else dtype)
        times = seconds / statistics.median(ours.found['seconds']) if ours else None
        rows.append(
            (
                name,
                side,
                size,
                f'{1e3 * seconds:.2f} ms',
                f'{int(batch) / seconds:.1f}',
                f'{times:.2f}' if times and side != row.OURS else '',
                f'{100 * gflop / 1e3 / seconds / peak:.0f} %' if gflop and peak else '',
                f'{x["resident_mib"] / 1024:.1f}' if x.get('resident_mib') else '',
                f'{x["planned_mib"] / 1024:.1f}' if x.get('planned_mib') else '',
                f'{r.preparation_seconds:.0f} s' if r.preparation_seconds else '',
            )
        )
    titles = 'row', 'side', 'size', 'median', 'images/s', 'x ours', 'of peak', 'peak GiB'
    return [*lines, '', *table((*titles, 'planned GiB', 'compiled ahead'), rows)]


def alternatives(results: Sequence[Result]) -> list[str]:
    """Every alternative of every family."""
    rows = [
        (r.name, x['name'], f'{x["ms"]:.3f} ms' if 'ms' in x else x['error'])
        for r in results
        for x in r.found
    ]
    return table(('family', 'alternative', 'median'), rows)


def profile(results: Sequence[Result]) -> list[str]:
    """The largest kernels and parts of a step, and the share of time the device was idle."""
    lines = []
    for r in results:
        x = r.found
        idle = '' if x['idle'] is None else f', device idle {100 * x["idle"]:.1f} % of the time'
        lines += [f'{r.name}: {x["kernels"]:.0f} kernels, {x["ms"]:.2f} ms per step{idle}', '']
        kernels = [
            (k['kernel'], f'{k["ms"]:.3f}', f'{k["calls"]:.0f}') for k in x['largest'][:SHOWN]
        ]
        lines += table(('kernel', 'ms per step', 'calls'), kernels)
        parts = [(p['part'], f'{p["ms"]:.3f}') for p in x['parts'][:SHOWN]]
        lines += ['', *table(('part', 'ms per step'), parts)]
    return lines


def run(results: Sequence[Result]) -> list[str]:
    """The run of the built-in data."""
    lines = []
    for r in results:
        x = r.found
        scores = ', '.join(f'{name} {score}' for name, score in x['scores'].items())
        lines.append(
            f'{r.name} and an evaluation in {x["seconds"]:.0f} s, {x["steps_per_second"]} steps/s '
            f'at the end, loss {x["loss"][0]:.4g} to {x["loss"][1]:.4g}; {scores}'
        )
    return lines


SECTIONS = {
    'machine': machine,
    'parity': parity,
    'speed': speed,
    'alternatives': alternatives,
    'profile': profile,
    'run': run,
}


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; nothing without rows."""
    if not rows:
        return []
    cells = [[cell.replace('|', '\\|').replace('\n', ' ') for cell in cells] for cells in rows]
    divider = f'|{"|".join("---" for _ in titles)}|'
    return [f'| {" | ".join(titles)} |', divider, *(f'| {" | ".join(x)} |' for x in cells)]
