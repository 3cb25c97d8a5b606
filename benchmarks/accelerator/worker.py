"""Runs one measurement and prints its result as JSON in the last line.

`benchmarks.accelerator_check` starts it: `python -m benchmarks.accelerator.worker KIND ARGUMENTS`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import flax
import jax
import jax.numpy as jnp

from benchmarks import our_side, row
from benchmarks.accelerator import alternatives, builtin_run, kernels, parity
from benchmarks.workload import Workload
from simcis_jax.runtime.allocator import configure_malloc


def machine() -> dict:
    """The device and the versions."""
    device = jax.devices()[0]
    found = {
        'device': device.device_kind,
        'platform': device.platform,
        'devices': jax.device_count(),
        'python': sys.version.split()[0],
        'jax': jax.__version__,
        'flax': flax.__version__,
    }
    if device.platform == 'gpu':
        query = 'driver_version,memory.total,clocks.max.sm,power.limit'
        command = ['nvidia-smi', f'--query-gpu={query}', '--format=csv,noheader']
        found['nvidia-smi'] = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return found


def peak(size: int, repeats: int) -> dict:
    """TFLOP/s of a large matrix product in each precision."""
    found = {}
    for name, dtype, precision in (
        ('bfloat16', jnp.bfloat16, 'default'),
        ('float32', jnp.float32, 'default'),
        ('float32, highest', jnp.float32, 'highest'),
    ):
        a = jax.random.normal(jax.random.key(0), (size, size), dtype)
        # Several in one call, so that starting it does not count; a sum of all keeps them needed.
        number = 8

        def products(a, precision=precision, number=number):
            return jax.lax.fori_loop(
                0, number, lambda _, b: jnp.matmul(a, b, precision=precision) / size**0.5, a
            )

        call = our_side.make_call(jax.jit(products).lower(a).compile(), (a,), False)
        seconds = min(row.first_and_warm(call, repeats)['seconds'])
        found[name] = number * 2 * size**3 / seconds / 1e12
    return found


def ours(name: str, settings: dict) -> dict:
    """One row of `benchmarks.speed`; with `repeats` 0 it is only compiled."""
    chosen = row.Settings(**settings)
    return our_side.measure(Workload(chosen).rows()[name](), chosen.repeats)


def traced(name: str, settings: dict) -> dict:
    """The kernels of a row."""
    return kernels.measure(Workload(row.Settings(**settings)).rows()[name]())


def family(name: str, settings: dict) -> list[dict]:
    """The alternatives of a family."""
    return alternatives.measure(name, row.Settings(**settings))


KINDS = {
    'machine': machine,
    'parity': parity.measure,
    'peak': peak,
    'ours': ours,
    'alternatives': family,
    'kernels': traced,
    'run': builtin_run.measure,
}


def command(kind: str, **arguments: Any) -> list[str]:
    """The command line of a measurement."""
    return [sys.executable, '-m', 'benchmarks.accelerator.worker', kind, json.dumps(arguments)]


def main() -> None:
    """Runs the measurement of the command line."""
    kind, arguments = sys.argv[1:]
    configure_malloc()  # As in the commands.
    print(json.dumps(KINDS[kind](**json.loads(arguments))), flush=True)


if __name__ == '__main__':
    main()
