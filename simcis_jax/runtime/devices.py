"""Devices: which there are, whether JAX uses them, their memory, and what a run prints of them."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping, Sequence

import jax

import simcis_jax

# Signs of an accelerator: (extra of the package, name, device files, environment variables).
ACCELERATORS = (
    ('cuda', 'an NVIDIA GPU', ('/dev/nvidia[0-9]*', '/dev/nvidiactl'), ()),
    ('tpu', 'a TPU', ('/dev/accel[0-9]*',), ('TPU_ACCELERATOR_TYPE', 'TPU_NAME', 'COLAB_TPU_ADDR')),
)


def print_devices(precision: str | None = None) -> None:
    """Prints versions and devices, and a warning if JAX does not use an accelerator.

    Args:
        precision: precision of the network, `model.dtype`; None = not printed.
    """
    print(describe(jax.devices(), jax.process_count(), precision))
    warning = unused_accelerator(
        jax.default_backend(), jax.config.jax_platforms or '', os.environ, glob.glob
    )
    if warning:
        print(f'warning: {warning}')


def describe(devices: Sequence[jax.Device], num_processes: int, precision: str | None) -> str:
    """One line with versions, backend, number and kind of devices, and precision."""
    kinds = ', '.join(dict.fromkeys(device.device_kind for device in devices))
    parts = [
        f'simcis_jax {simcis_jax.__version__}',
        f'JAX {jax.__version__}',
        f'backend {devices[0].platform}',
        f'{len(devices)} device{"s" * (len(devices) > 1)} ({kinds})',
    ]
    if num_processes > 1:
        parts.append(f'{num_processes} processes')
    if precision:
        parts.append(f'precision {precision}')
    return ', '.join(parts)


def unused_accelerator(
    backend: str,
    platforms: str,
    environment: Mapping[str, str],
    find_files: Callable[[str], Sequence[str]],
) -> str | None:
    """A warning if JAX runs on the CPU of a machine that has an accelerator; None otherwise.

    Args:
        backend: the backend that JAX chose.
        platforms: value of `jax_platforms`; there is no warning if it starts with 'cpu'.
        environment: environment variables.
        find_files: returns the files that match a pattern, such as `glob.glob`.
    """
    found = find_accelerator(environment, find_files)
    if backend != 'cpu' or platforms.split(',')[0] == 'cpu' or found is None:
        return None
    extra, name = found
    return (
        f'this machine has {name}, but JAX runs on the CPU; install support with '
        f"pip install 'simcis_jax[{extra}]', or set JAX_PLATFORMS=cpu to use the CPU."
    )


def find_accelerator(
    environment: Mapping[str, str], find_files: Callable[[str], Sequence[str]]
) -> tuple[str, str] | None:
    """Extra of the package and name of an accelerator of this machine; None if it has none."""
    is_hidden = environment.get('CUDA_VISIBLE_DEVICES') in ('', '-1')
    for extra, name, patterns, variables in ACCELERATORS:
        if extra == 'cuda' and is_hidden:
            continue
        if any(map(find_files, patterns)) or any(map(environment.get, variables)):
            return extra, name
    return None


def will_use_cpu() -> bool:
    """Whether JAX will choose the CPU, without starting a backend.

    A machine with an accelerator counts as one that uses it, unless JAX_PLATFORMS says otherwise.
    """
    if platforms := jax.config.jax_platforms:
        return platforms.split(',')[0] == 'cpu'
    return find_accelerator(os.environ, glob.glob) is None


def memory() -> dict[str, int]:
    """Bytes on the first device: `in_use` now, and at the `peak`; empty if JAX does not tell."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    names = {'in_use': 'bytes_in_use', 'peak': 'peak_bytes_in_use'}
    return {name: statistics[key] for name, key in names.items() if key in statistics}
