"""Ten minutes on an accelerator: is it right, how fast is it, and where does the time go?

    python -m benchmarks.accelerator_check --out=DIR
    python -m benchmarks.accelerator_check --out=DIR --small --parts=speed,profile

In this order: parity with the recorded arrays of the published code; speed and memory of the train
step and of the evaluation beside Mask2Former of transformers, eager and compiled; the alternatives
of deformable attention, assignment and point sampling; a profile of the train step; a short run of
the built-in data. Every measurement is a process of its own with a time limit. DIR/check.json and
DIR/check.md are written after each, so that nothing is lost if the machine is taken away; what
failed, was skipped or was not reached says so. Programs are compiled ahead in parallel, while
parity, which is not timed, is measured.

It needs jax, flax, optax, einops, OpenCV, SciPy and pytest; torch and transformers for the peer,
and all requirements for the built-in run. --small rehearses everything at a small size, on CPU too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import row
from benchmarks.accelerator import builtin_run, report
from benchmarks.accelerator.alternatives import FAMILIES
from benchmarks.accelerator.schedule import NOT_REACHED, Measurement, Result, Schedule
from benchmarks.accelerator.worker import command
from simcis_jax.precision import PRECISIONS

MINUTES = 9.0  # For which the limits of single measurements are made; others scale with it.
# Share of the time of each part.
PARTS = {'parity': 0.30, 'speed': 0.32, 'alternatives': 0.12, 'profile': 0.08, 'run': 0.18}
PREPARATION = 0.35  # Share of the time after which nothing is compiled ahead any more.
STEP, LATER_STEP, FORWARD = 'train step', 'train step, teacher + CSL + VQ', 'evaluation forward'
PEER = ('torch', 'transformers')
# Flags of XLA for NVIDIA GPUs, whose effect on a train step is measured.
FLAGS = {
    'loops in CUDA graphs': '--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL',
    'deterministic': '--xla_gpu_deterministic_ops=true',
}


def measurements(small: bool, peer_python: str) -> list[Measurement]:
    """All measurements in order; at most these, since time may not suffice."""
    base = row.Settings(repeats=3)
    if small:
        base = row.Settings(size=128, points=256, targets=5, slots=8, bank_size=4, repeats=2)
    batches = (1, 2) if small else (8, 16)
    found = [Measurement('machine', 'versions', command('machine'), 60, untimed=True)]
    case = 'train_t1_pan' if small else 'train_t2_pan_100-10'
    for precision in PRECISIONS:
        arguments = dict(case=case, precision=precision, updates=not small)
        found.append(
            Measurement('parity', precision, command('parity', **arguments), 300, untimed=True)
        )
    size = 1024 if small else 8192
    found.append(Measurement('speed', 'matrix product', command('peak', size=size, repeats=3), 60))
    for batch in batches:
        for dtype in ('bfloat16', 'float32'):
            settings = dataclasses.replace(base, batch=batch, dtype=dtype)
            found += speed(settings, peer_python)
    settings = dataclasses.replace(base, batch=batches[0], dtype='bfloat16')
    less = dataclasses.replace(settings, pixel_decoder_precision='high')
    found.append(our_speed(LATER_STEP, less, 'pixel decoder of less precision'))
    for label, flags in FLAGS.items():
        found.append(our_speed(LATER_STEP, settings, label, ['env', f'XLA_FLAGS={flags}']))
    for family in FAMILIES:
        measured, compiled = (
            command('alternatives', name=family, settings=dataclasses.asdict(x))
            for x in (settings, dataclasses.replace(settings, repeats=1))
        )
        found.append(Measurement('alternatives', family, measured, 90, preparation=compiled))
    arguments = dict(name=LATER_STEP, settings=dataclasses.asdict(settings))
    found.append(Measurement('profile', LATER_STEP, command('kernels', **arguments), 150))
    steps = 6 if small else 300
    measured, compiled = (command('run', steps=n) for n in (steps, 2))
    name, needs = f'{steps} steps', builtin_run.NEEDS
    return [*found, Measurement('run', name, measured, 240, preparation=compiled, needs=needs)]


def speed(settings: row.Settings, peer_python: str) -> list[Measurement]:
    """Train step and forward pass at one size, here and with PyTorch."""
    found = []
    for name in (LATER_STEP, STEP, FORWARD):
        found.append(our_speed(name, settings))
        for side in row.ROWS[name][1:]:
            peer = [
                [peer_python or sys.executable, '-m', 'benchmarks.torch_peer', name, side, text]
                for text in (
                    json.dumps(dataclasses.asdict(x))
                    for x in (settings, dataclasses.replace(settings, repeats=1))
                )
            ]
            needs = () if peer_python else PEER
            preparation = peer[1] if side == row.COMPILED else ()
            key = report.key(name, side, size_of(settings))
            found.append(Measurement('speed', key, peer[0], 120, preparation, needs))
    return found


def our_speed(
    name: str, settings: row.Settings, variant: str = '', prefix: Sequence[str] = ()
) -> Measurement:
    """A row of `speed` on our side; a variant has a command before that of the measurement."""
    measured, compiled = (
        [*prefix, *command('ours', name=name, settings=dataclasses.asdict(x))]
        for x in (settings, dataclasses.replace(settings, repeats=0))
    )
    side = ', '.join(filter(None, (row.OURS, variant)))
    key = report.key(name, side, size_of(settings))
    return Measurement('speed', key, measured, 180, preparation=compiled)


def size_of(settings: row.Settings) -> str:
    """Batch size and type, as the report shows them."""
    return f'batch {settings.batch}, {settings.dtype}'


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog='benchmarks.accelerator_check',
        description='Measures correctness and speed on an accelerator in a few minutes.',
        allow_abbrev=False,
    )
    add = parser.add_argument
    add('--out', required=True, type=os.path.expanduser, help='Folder for check.json and check.md.')
    add('--minutes', type=float, default=MINUTES, help='Everything ends after this time.')
    add('--parts', default=','.join(PARTS), help='Parts to measure, separated by commas.')
    add('--small', action='store_true', help='A small size, to rehearse.')
    add('--peer_python', default='', help='A Python with torch and transformers; default: this.')
    add('--workers', type=int, default=0, help='Programs compiled at once; 0 = half the cores.')
    options = parser.parse_args(arguments)
    parts = [name for name in PARTS if name in options.parts.split(',')]
    if unknown := set(options.parts.split(',')) - set(PARTS):
        parser.error(f'unknown part {", ".join(unknown)}; parts are {", ".join(PARTS)}')

    out, started = Path(options.out), time.strftime('%Y-%m-%d %H:%M')
    out.mkdir(parents=True, exist_ok=True)

    def write(results: Sequence[Result]) -> None:
        header = dict(date=started, small=options.small, minutes=options.minutes)
        report.write(out, header, results)
        for r in results:
            if r.status != NOT_REACHED and (r.part, r.name) not in shown:
                shown.add((r.part, r.name))
                print(f'{r.part}, {r.name}: {r.status}, {r.seconds:.0f} s', flush=True)

    shown: set[tuple[str, str]] = set()
    total = sum(PARTS[name] for name in parts)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that subprocesses are ended.
    with tempfile.TemporaryDirectory() as cache:
        longer = options.minutes / MINUTES
        chosen = [
            dataclasses.replace(m, seconds=longer * m.seconds)
            for m in measurements(options.small, options.peer_python)
            if m.part in ('machine', *parts)
        ]
        schedule = Schedule(
            chosen,
            budgets={'machine': 60.0}
            | {name: 60 * options.minutes * PARTS[name] / total for name in parts},
            seconds=60 * options.minutes,
            preparation_seconds=60 * options.minutes * PREPARATION,
            workers=options.workers or max(1, len(os.sched_getaffinity(0)) // 2),
            environment={
                'JAX_COMPILATION_CACHE_DIR': f'{cache}/jax',
                'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
                'TORCHINDUCTOR_CACHE_DIR': f'{cache}/torch',
            },
            shared={'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'},
            report=write,
        )
        write(schedule.run())
    print(f'{out}/check.md')


if __name__ == '__main__':
    main()
