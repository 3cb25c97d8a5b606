"""Time, memory and FLOPs of the network, its train step and its parts, compared with PyTorch.

    python -m benchmarks.speed --peer_python=VENV/bin/python --out=speed.json

Every row is measured on every side in a subprocess: compiled, called twice, then timed. Medians and
ranges are printed as a Markdown table. All sides use the GPU if there is one. The PyTorch side is
Mask2Former of Hugging Face transformers in eager mode and with torch.compile; --peer_python is a
Python with torch and transformers, and without it PyTorch is left out. If --out exists, the
measured rows replace those in the file and the others are kept, so --rows and --sides can measure a
few at a time. With --repeats=0 simcis_jax is only compiled, which gives the planned memory.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from pathlib import Path

from absl import app, flags

from benchmarks.process import machine, measure
from benchmarks.row import OURS, ROWS, SIDES, Measurement
from benchmarks.settings_flags import settings

PEER_PYTHON = flags.DEFINE_string('peer_python', '', 'A Python with torch and transformers.')
ROWS_FLAG = flags.DEFINE_string('rows', '', 'Measure only rows that match this regular expression.')
SIDES_FLAG = flags.DEFINE_string(
    'sides', '', 'Measure only sides that match this regular expression.'
)
OUT = flags.DEFINE_string('out', '', 'JSON file to write or add to.')


def table(measurements: list[Measurement]) -> str:
    """A Markdown table with one line per row and side, in the order of `ROWS`.

    `x ours` is the time divided by that of simcis_jax, `others` the share of the machine that other
    processes used, and `peak` the FLOP/s divided by those of the fastest matrix product.
    """
    found = {(m.row, m.side): m for m in measurements}
    products = [m for m in measurements if m.row == 'matrix product']
    peak = max((m.gflop / m.median for m in products if m.seconds), default=None)
    lines = [
        '| row | side | median | range | x ours | others | first call '
        '| resident | planned | work | peak |',
        '|---|---|---|---|---|---|---|---|---|---|---|',
    ]
    for key in [(row, side) for row in ROWS for side in SIDES if (row, side) in found]:
        lines.append(_line(found[key], found.get((key[0], OURS)), peak))
    return '\n'.join(lines)


def _line(found: Measurement, ours: Measurement | None, peak: float | None) -> str:
    timed, work = found.seconds, found.gflop
    cells = [
        found.row,
        found.side,
        f'**{_seconds(found.median)}**' if timed else '',
        f'{_seconds(min(timed))} to {_seconds(max(timed))}' if timed else '',
        f'{found.median / ours.median:.2f}'
        if timed and ours and ours.seconds and ours is not found
        else '',
        f'{100 * found.others:.0f} %' if timed else '',
        _seconds(found.first_seconds),
        f'{found.resident_mib:.0f} MiB' if found.resident_mib else '',
        f'{found.planned_mib:.0f} MiB' if found.planned_mib else '',
        f'{work:.3g} GFLOP' if work else '',
        f'{100 * work / found.median / peak:.0f} %' if work and timed and peak else '',
    ]
    return f'| {" | ".join(cells)} |'


def _seconds(value: float) -> str:
    return f'{value:.3g} s' if value >= 0.1 else f'{1000 * value:.3g} ms'


def read(path: Path, header: dict) -> list[Measurement]:
    """The measurements in a file; none if it does not exist.

    Raises:
        ValueError: the file is of another machine or problem size.
    """
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    for key in ('machine', 'settings'):
        if found[key] != header[key]:
            raise ValueError(
                f'{path} has {key} {found[key]}, this run {header[key]}; give another --out.'
            )
    return [Measurement(**m) for m in found['measurements']]


def main(_) -> None:
    """Measures the rows, prints the table and writes the file."""
    chosen = settings()
    size = {k: v for k, v in dataclasses.asdict(chosen).items() if k != 'repeats'}
    header = dict(machine=machine(), date=time.strftime('%Y-%m-%d'), settings=size)
    out = Path(OUT.value) if OUT.value else None
    measurements = read(out, header) if out else []
    for row, sides in ROWS.items():
        for side in sides:
            if not (re.search(ROWS_FLAG.value, row) and re.search(SIDES_FLAG.value, side)):
                continue
            if side != OURS and not PEER_PYTHON.value:
                continue
            new = measure(row, side, chosen, PEER_PYTHON.value)
            print(_line(new, None, None), flush=True)
            measurements = [m for m in measurements if (m.row, m.side) != (row, side)] + [new]
            if out:
                content = header | dict(measurements=[dataclasses.asdict(m) for m in measurements])
                out.write_text(json.dumps(content, indent=1) + '\n')
    print(table(measurements))


if __name__ == '__main__':
    app.run(main)
