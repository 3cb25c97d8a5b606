"""Compiles and measures one row of the table with simcis_jax.

`benchmarks.speed` starts it as a subprocess: `python -m benchmarks.our_side ROW SIDE SETTINGS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import flax
import jax

from benchmarks import products, row
from benchmarks.workload import Work, Workload
from simcis_jax.runtime.allocator import configure_malloc


def make_call(compiled: jax.stages.Compiled, arguments: tuple, carries: bool) -> Callable[[], None]:
    """A function that runs the work once and waits for its result; see `Work`."""

    def call():
        nonlocal arguments
        result = jax.block_until_ready(compiled(*arguments))
        arguments = (result[0], *arguments[1:]) if carries else arguments

    return call


def measure(work: Work, repeats: int) -> dict:
    """Compiles the work and times it; with 0 repeats it only compiles."""
    function, arguments, carries = work
    start = time.perf_counter()
    traced = function.trace(*arguments)
    compiled = traced.lower().compile()
    compilation = time.perf_counter() - start
    memory, planned = compiled.memory_analysis(), None
    if memory is not None:  # A program from the compilation cache may not have it.
        planned = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
        ) / 2**20
    found = dict(first_seconds=compilation, seconds=[], others=0.0, resident_mib=None)
    if repeats:
        found = row.first_and_warm(make_call(compiled, arguments, carries), repeats)
        found['first_seconds'] += compilation
        on_device = jax.devices()[0].memory_stats() or {}  # None on CPU.
        if 'peak_bytes_in_use' in on_device:
            found['resident_mib'] = on_device['peak_bytes_in_use'] / 2**20
    return found | dict(planned_mib=planned, gflop=products.count(traced.jaxpr.jaxpr) / 1e9)


def main() -> None:
    """Measures one row."""
    name, side, settings = row.read_task()
    jax.config.update('jax_enable_compilation_cache', False)  # Compilation is measured too.
    if settings.devices > 1:
        jax.config.update('jax_num_cpu_devices', settings.devices)
    configure_malloc()  # As in the commands.
    found = measure(Workload(settings).rows()[name](), settings.repeats)
    versions = {'jax': jax.__version__, 'flax': flax.__version__}
    row.print_result(row.Measurement(name, side, jax.devices()[0].device_kind, versions, **found))


if __name__ == '__main__':
    main()
