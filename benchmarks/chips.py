"""Accelerators for which programs can be compiled on a machine that has none.

The compiler of TPUs comes with the package libtpu, that of NVIDIA GPUs with JAX's CUDA plugin. TPUs
are known to their compiler by name; a GPU is described to its compiler by a few numbers.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Mapping

import jax
from jax.experimental import topologies

from simcis_jax.errors import InputError

GIB = 2**30

# Number of TPU chips -> their grid.
GRIDS = {1: (1, 1), 2: (1, 2), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8)}
SMALLEST_HOST = 4  # With fewer chips, the compiler must be told how many a host has.

# JAX reserves this share of a GPU's memory and uses no more.
RESERVED = 0.75
CUDA_PLUGINS = ('jax_cuda12_plugin', 'jax_cuda13_plugin')
# No kernels can be timed without a GPU, so the compiler must not try, nor use kernels that need it.
CUDA_OPTIONS = {'xla_gpu_autotune_level': 0, 'xla_gpu_enable_triton_gemm': False}


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator, per device."""

    title: str
    memory: float  # Bytes that programs can use.
    bandwidth: float  # Peak of the memory, bytes per second.
    peak: float  # FLOP per second of products in the fastest dtype that training can use.
    clock: float  # Hz, to turn the compiler's cycles into seconds.
    has_bfloat16: bool = True  # In hardware.
    gpu: Mapping[str, float] | None = None  # Description for the GPU compiler; None = a TPU.

    @property
    def platform(self) -> str:
        """Name of the platform to lower for."""
        return 'tpu' if self.gpu is None else 'cuda'

    @property
    def compiler_options(self) -> dict[str, object]:
        """Options of `Lowered.compile`."""
        return {} if self.gpu is None else dict(CUDA_OPTIONS)


def _gpu(
    title: str, *, clock_ghz: float, peak: float, capability: tuple[int, int], **description: float
) -> Chip:
    description |= dict(major=capability[0], minor=capability[1], clock_rate_ghz=clock_ghz)
    return Chip(
        title,
        memory=RESERVED * description['device_memory_size'],
        bandwidth=description['memory_bandwidth'],
        peak=peak,
        clock=clock_ghz * 1e9,
        has_bfloat16=capability >= (8, 0),
        gpu=description,
    )


CHIPS = {
    'v5e': Chip('TPU v5e', 15.75 * GIB, bandwidth=0.82e12, peak=197e12, clock=1.5e9),
    'v6e': Chip('TPU v6e', 31.25 * GIB, bandwidth=1.64e12, peak=918e12, clock=1.75e9),
    'h100': _gpu(
        'NVIDIA H100 80GB HBM3',
        capability=(9, 0),
        peak=989e12,
        clock_ghz=1.98,
        core_count=132,
        fpus_per_core=128,
        threads_per_core_limit=2048,
        shared_memory_per_core=233472,
        shared_memory_per_block_optin=232448,
        l2_cache_size=52428800,
        memory_bandwidth=3352320000000,
        device_memory_size=84942979072,
    ),
    'a100': _gpu(
        'NVIDIA A100-SXM4-40GB',
        capability=(8, 0),
        peak=312e12,
        clock_ghz=1.41,
        core_count=108,
        fpus_per_core=64,
        threads_per_core_limit=2048,
        shared_memory_per_core=167936,
        shared_memory_per_block_optin=166912,
        l2_cache_size=41943040,
        memory_bandwidth=1555200000000,
        device_memory_size=42505273344,
    ),
    't4': _gpu(
        'Tesla T4',
        capability=(7, 5),
        peak=8.1e12,  # In float32; training in float16 is not offered.
        clock_ghz=1.59,
        core_count=40,
        fpus_per_core=64,
        threads_per_core_limit=1024,
        shared_memory_per_core=65536,
        shared_memory_per_block_optin=65536,
        l2_cache_size=4194304,
        memory_bandwidth=320064000000,
        device_memory_size=15828320256,
    ),
}

GPU_DESCRIPTION = """\
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_memory_per_core}
  threads_per_core_limit: {threads_per_core_limit}
  core_count: {core_count}
  fpus_per_core: {fpus_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {memory_bandwidth}
  l2_cache_size: {l2_cache_size}
  clock_rate_ghz: {clock_rate_ghz}
  device_memory_size: {device_memory_size}
  shared_memory_per_block_optin: {shared_memory_per_block_optin}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{title}"
"""


def devices(name: str, count: int = 1) -> list[jax.Device]:
    """Devices to compile for; nothing can run on them.

    Args:
        name: a key of `CHIPS`.
        count: how many of them.

    Raises:
        InputError: the name or the number is unknown, or the compiler is not installed.
    """
    if name not in CHIPS:
        raise InputError(f'--chip={name} is unknown; one of {", ".join(CHIPS)}.')
    chip = CHIPS[name]
    if chip.gpu is not None:
        return _gpus(name, chip, count)
    if count not in GRIDS:
        raise InputError(
            f'--devices={count}: {chip.title} chips form grids of {", ".join(map(str, GRIDS))}.'
        )
    return _tpus(name, count)


def _tpus(name: str, count: int) -> list[jax.Device]:
    if importlib.util.find_spec('libtpu') is None:
        raise _not_installed(name, 'tpu')
    # As on a host with TPUs; without them, libtpu would ask a metadata server.
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-4')
    os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    grid = GRIDS[count]
    bounds = dict(chips_per_host_bounds=(*grid, 1)) if count < SMALLEST_HOST else {}
    topology = f'{name}:{grid[0]}x{grid[1]}'
    return list(topologies.get_topology_desc(topology, 'tpu', **bounds).devices)


def _gpus(name: str, chip: Chip, count: int) -> list[jax.Device]:
    if not any(map(importlib.util.find_spec, CUDA_PLUGINS)):
        raise _not_installed(name, 'cuda')
    os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')  # It asks for a driver.
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    try:
        found = topologies.get_topology_desc(
            platform='cuda',
            target_config=GPU_DESCRIPTION.format(title=chip.title, **chip.gpu),
            topology=f'1x1x{count}',
        )
    except NotImplementedError as error:  # JAX ignores a plugin of another version.
        raise _not_installed(name, 'cuda') from error
    return list(found.devices)


def _not_installed(name: str, extra: str) -> InputError:
    return InputError(
        f'--chip={name} needs a compiler that is not installed, or not in the version of jax '
        f"{jax.__version__}; pip install 'simcis_jax[{extra}]' or 'jax[{extra}]=={jax.__version__}'"
        '; the device itself is not needed.'
    )
