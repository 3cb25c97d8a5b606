"""What a config needs on an accelerator that is not here: memory, work, operations, collectives.

    python -m benchmarks.plan --config=ade_cps_100_10 --chip=v5e
    python -m benchmarks.plan --config=ade_cps_100_10 --chip=h100 --devices=4 --programs=evaluation

Compiles the train step of the first stage, that of later stages and the evaluation of a config for
TPU v5e or v6e, or for NVIDIA H100, A100 or T4. Any config value can be changed on the command line,
as in --config.training.batch_size=16. The compiler of TPUs is in the extra `tpu`, that of GPUs in
the extra `cuda`; no device is needed. All numbers are per device. A train step of the published
size takes the TPU compiler minutes on one core.

Memory is what the compiler plans. Bytes are what all operations read and write, with padding, also
where a cache would answer. A loop whose length depends on data counts as one trip.
The time of an operation is the longer of the compiler's cycles (TPU only; gathers, scatters and
sorts have none) and of its bytes at the peak of the memory. The sum is a yardstick to compare
programs with, not a prediction.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from benchmarks import advice, products
from benchmarks.chips import CHIPS, GIB, Chip, devices
from benchmarks.compiled_costs import COLLECTIVE, Lookup, Loop, Operation, Program, padded_bytes
from benchmarks.programs import EVALUATION, Programs, bytes_per_device
from benchmarks.programs import Program as Traced
from simcis_jax.errors import FileError
from simcis_jax.runtime import command
from simcis_jax.settings.method_choice import resolve
from simcis_jax.settings.validated import Settings, from_config
from simcis_jax.training.stage_data import open_splits

DEFAULT_CLASSES = 150
LARGE_LOOKUP = 1_000_000  # Indices of a gather or scatter that is worth a line.
PALLAS = ('tpu_custom_call', 'mosaic_gpu_v2')  # Targets of its custom calls.
# How the TPU compiler says that a program does not fit.
EXHAUSTED = re.compile(r'Used ([\d.]+)([KMGT]) of')
UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the compiler says of one program."""

    seconds: float  # Of tracing and compiling.
    flop: float  # Of matrix products and convolutions, see `products`.
    memory: advice.Memory
    hlo: str = ''  # Empty if the compiler refused the program, because it does not fit.


def compile_program(traced: Traced, chip: Chip, programs: Programs) -> Plan:
    """Compiles a program."""
    start = time.perf_counter()
    function = traced.function.trace(*traced.arguments)
    flop = products.count(function.jaxpr.jaxpr)
    lowered = function.lower(lowering_platforms=(chip.platform,))
    try:
        compiled = lowered.compile(compiler_options=chip.compiler_options)
    except jax.errors.JaxRuntimeError as error:
        used = EXHAUSTED.search(str(error))
        if used is None:
            raise
        arguments = bytes_per_device(traced.arguments, programs.mesh)
        total = float(used[1]) * UNITS[used[2]]
        memory = advice.Memory(arguments, max(0.0, total - arguments))
        return Plan(time.perf_counter() - start, flop, memory)
    planned = compiled.memory_analysis()
    kept = planned.argument_size_in_bytes + planned.output_size_in_bytes
    kept -= planned.alias_size_in_bytes
    temporaries = planned.temp_size_in_bytes
    if chip.gpu is None:  # For TPUs, it counts some memory more often than there is.
        temporaries = planned.peak_memory_in_bytes - kept
    memory = advice.Memory(kept, temporaries + planned.generated_code_size_in_bytes)
    return Plan(time.perf_counter() - start, flop, memory, compiled.as_text())


def describe(plan: Plan, chip: Chip, top: int) -> list[str]:
    """Lines about a compiled program."""
    parts = (plan.memory.arguments, plan.memory.temporaries)
    lines = [
        f'compiled in {plan.seconds:.0f} s',
        'arguments {:.2f} GiB, temporaries {:.2f} GiB'.format(*(x / GIB for x in parts)),
        f'matrix products {plan.flop / 1e9:.4g} GFLOP: {milliseconds(plan.flop / chip.peak)} at '
        f'the peak of {chip.peak / 1e12:.0f} TFLOP/s',
    ]
    if not plan.hlo:
        return [*lines, 'the compiler refused the program, so that no more is known']
    program = Program(plan.hlo)
    operations, loops = program.costs()
    moved = sum(x.moved for x in operations)
    # Copies that are started ahead run beside other operations.
    waited = [x for x in operations if not x.opcode.endswith('-start')]
    total = sum(x.seconds(chip.clock, chip.bandwidth) for x in waited)
    in_loops = sum(x.trips for x in operations)
    return [
        *lines,
        f'{moved / 1e9:.4g} GB: {milliseconds(moved / chip.bandwidth)} at the peak of '
        f'{chip.bandwidth / 1e12:.2f} TB/s; sum over operations {milliseconds(total)}',
        f'{len(operations)} operations, {in_loops} with the trips of known loops, '
        f'{sum(x.opcode in PALLAS for x in operations)} of them Pallas kernels, which count by '
        'their bytes only',
        *describe_loops(loops),
        *describe_collectives(operations),
        *describe_lookups(program.lookups()),
        *largest(operations, chip, top),
    ]


def describe_loops(loops: Sequence[Loop]) -> list[str]:
    """One line per loop."""
    lines = [f'{len(loops)} loops']
    for x in loops:
        trips = 'a data-dependent number of' if x.trips is None else x.trips
        around = f', {x.around} times' if x.around > 1 else ''
        lines.append(f'  {trips} trips of {x.num_operations} operations{around}: {short(x.origin)}')
    return lines


def describe_collectives(operations: Sequence[Operation]) -> list[str]:
    """One line per collective, and a warning for those in loops."""
    found = [x for x in operations if COLLECTIVE.match(x.opcode)]
    lines = [f'{len(found)} collectives, {sum(x.in_loop for x in found)} of them in loops']
    for x in found:
        where = ' IN A LOOP' if x.in_loop else ''
        size = padded_bytes(x.shape) / 2**20
        lines.append(f'  {x.opcode}, {size:.3g} MiB{where}: {short(x.origin)}')
    return lines


def describe_lookups(lookups: Sequence[Lookup]) -> list[str]:
    """The gathers and scatters with the most indices."""
    large = [x for x in lookups if x.num_indices > LARGE_LOOKUP]
    lines = [f'{len(large)} gathers and scatters with more than a million indices']
    for x in sorted(large, key=lambda x: -x.num_indices)[:10]:
        lines.append(f'  {x.opcode}, {x.num_indices:,} indices: {short(x.origin)}')
    return lines


def largest(operations: Sequence[Operation], chip: Chip, top: int) -> list[str]:
    """A Markdown table of the operations that take longest."""
    lines = [
        '',
        '| time | bytes | trips | operation | result | from |',
        '|---:|---:|---:|---|---|---|',
    ]
    rows = sorted(operations, key=lambda x: -x.seconds(chip.clock, chip.bandwidth))[:top]
    for x in rows:
        cells = [
            milliseconds(x.seconds(chip.clock, chip.bandwidth)),
            f'{x.moved / 1e6:.0f} MB',
            f'{x.trips}{"?" * x.unknown_trips}',
            x.name,
            x.shape.split('{')[0].lstrip('('),
            short(x.origin),
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return lines


def milliseconds(seconds: float) -> str:
    """Seconds as text."""
    return f'{1e3 * seconds:.3g} ms'


def short(origin: str, length: int = 70) -> str:
    """The end of a name stack, which says most."""
    return origin if len(origin) <= length else f'…{origin[-length:]}'


def plan_program(
    name: str, traced: Traced, chip: Chip, programs: Programs, options: argparse.Namespace
) -> str:
    """Compiles a program and prints what is known; returns a line about its memory."""
    title = f'{name}, {traced.images} x {traced.side} x {traced.side}'
    print(f'\n## {title}', flush=True)
    plan = compile_program(traced, chip, programs)
    print('\n'.join(describe(plan, chip, options.top)), flush=True)
    if options.hlo:
        folder = Path(options.hlo)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'{re.sub("[, ]+", "_", name)}.txt').write_text(plan.hlo, encoding='utf-8')
    smaller = advice.smaller_evaluation if name == EVALUATION else advice.smaller_step
    changes = smaller(plan.memory, chip, programs.settings, traced.images)
    return f'{title}: {advice.sentence(plan.memory, chip, changes)}'


def count_classes(settings: Settings, given: int) -> tuple[int, str]:
    """Number of classes, and where it comes from: --classes, the data set, or the default."""
    if given:
        return given, ''
    try:
        return len(open_splits(settings.data)[0].categories), ''
    except FileError:
        return DEFAULT_CLASSES, ' (the data set is not here; --classes=N sets another number)'


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command.make_parser(
        'benchmarks.plan', 'Compiles a config for an accelerator that is not here.'
    )
    add = parser.add_argument
    add('--config', type=command.path, required=True, help='Name or path of a config.')
    add('--chip', required=True, help=f'One of {", ".join(CHIPS)}.')
    add('--devices', type=int, default=1, help='Number of chips that share a batch.')
    add('--classes', type=int, default=0, help='Number of classes; 0 = of the data set.')
    add('--programs', default='', help='Compile only those that match this regular expression.')
    add('--top', type=int, default=12, help='Number of operations to list.')
    add('--hlo', type=command.path, help='Folder to write the compiled HLO to.')
    options, overrides = command.split_overrides(parser, arguments)

    def program() -> None:
        # Only the compiler of the chip is used; its time is not that of a cache.
        jax.config.update('jax_platforms', 'cpu')
        jax.config.update('jax_enable_compilation_cache', False)
        found = devices(options.chip, options.devices)
        config = command.read_config(options.config, overrides).to_dict()
        settings = from_config(resolve(config, command.changed_keys(overrides)))
        classes, source = count_classes(settings, options.classes)
        chip, programs = CHIPS[options.chip], Programs(settings, classes, found)
        print(
            f'# {options.config} on {len(found)} x {chip.title}, {classes} classes{source}, '
            f'{settings.model["dtype"]}, jax {jax.__version__}; all numbers per device'
        )
        verdicts = [
            plan_program(name, make(), chip, programs, options)
            for name, make in programs.makers().items()
            if re.search(options.programs, name)
        ]
        print('\n## Memory\n' + '\n'.join(verdicts))

    command.start(program, uses_devices=False)


if __name__ == '__main__':
    main()
