"""Data parallelism on any number of devices: shard_map over a 1-D mesh with the axis `data`."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from simcis_jax.errors import InputError
from simcis_jax.runtime.failures import HEARTBEAT

AXIS = 'data'
REPLICATED, SPLIT = PartitionSpec(), PartitionSpec(AXIS)


def start_processes() -> None:
    """Connects this process to the others of the run; call it before anything uses a device.

    On TPU pods, SLURM, Open MPI and Kubernetes, JAX detects the processes. Elsewhere the
    environment variables JAX_COORDINATOR_ADDRESS=HOST:PORT (of process 0), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID are needed.

    Raises:
        InputError: the processes cannot be detected and the variables are missing or invalid.
    """
    count, index = (os.environ.get(name) for name in ('JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'))
    try:
        jax.distributed.initialize(
            num_processes=int(count) if count else None,
            process_id=int(index) if index else None,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (ValueError, TypeError) as error:
        raise InputError(
            f'--distributed: {error} On TPU pods, SLURM, Open MPI and Kubernetes the processes are '
            'detected; elsewhere set JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and '
            'JAX_PROCESS_ID.'
        ) from error


def is_main() -> bool:
    """Whether this is process 0, the only one that writes files and prints."""
    return jax.process_index() == 0


def wait_for_all(place: str) -> None:
    """Blocks until every process has reached this call; `place` names it in errors."""
    multihost_utils.sync_global_devices(place)


def make_mesh(batch_size: int) -> Mesh:
    """A 1-D mesh of all devices of all processes.

    Raises:
        InputError: batch_size, the global one, is not a multiple of the number of devices.
    """
    num_devices = jax.device_count()
    if batch_size % num_devices:
        raise InputError(
            f'training.batch_size={batch_size} is the global batch size and must be a multiple of '
            f'the number of devices, {num_devices}.'
        )
    return mesh_of(jax.devices())


def make_local_mesh() -> Mesh:
    """A 1-D mesh of the devices of this process, for work that each process does on its own."""
    return mesh_of(jax.local_devices())


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
    """A 1-D mesh of these devices."""
    axis_types = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=axis_types, devices=devices)


def map_over_devices(
    function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any, donate: tuple[int, ...] = ()
) -> Callable:
    """Compiles a per-device function, whose collectives use the axis `AXIS`."""
    # Replication is not checked, because the loops of the assignment solver lose that annotation.
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    return jax.jit(mapped, donate_argnums=donate)


def first_row(num_rows: int) -> Array:
    """Index of this device's first row in the global batch; for use inside a mapped function."""
    return jax.lax.axis_index(AXIS) * num_rows


def gather_rows(rows: Array) -> Array:
    """Gathers the rows of all devices in the order of the global batch."""
    return jax.lax.all_gather(rows, AXIS, tiled=True)


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Turns this process's rows of a batch into global arrays sharded over the mesh."""
    sharding = NamedSharding(mesh, SPLIT)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )


def put_replicated(mesh: Mesh, tree: Any) -> Any:
    """Replicates arrays on every device; every process must pass the same values."""
    sharding = NamedSharding(mesh, REPLICATED)

    def put(x):
        if getattr(x, 'sharding', None) == sharding:
            return x
        copies = [jax.device_put(x, device) for device in mesh.local_devices]
        return jax.make_array_from_single_device_arrays(jnp.shape(x), sharding, copies)

    return jax.tree.map(put, tree)


def replicated_like(mesh: Mesh, shapes: Any) -> Any:
    """Shapes and dtypes with a replicated sharding, for restoring a checkpoint."""
    sharding = NamedSharding(mesh, REPLICATED)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def local_replicas(mesh: Mesh, tree: Any) -> Any:
    """Replicates arrays on every device of this process, without copies of those already there."""
    sharding = NamedSharding(mesh, REPLICATED)

    def local(x):
        if not isinstance(x, Array) or x.is_fully_addressable:
            return jax.device_put(x, sharding)
        replicas = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, replicas)

    return jax.tree.map(local, tree)


def gather_objects(value: Any) -> list[Any]:
    """The values that all processes passed, by process index; every process must call it.

    Values are pickled, because JAX would convert 64-bit arrays to 32 bits.
    """
    if jax.process_count() == 1:
        return [value]
    content = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(content.size))
    rows = multihost_utils.process_allgather(np.resize(content, int(sizes.max())))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
