"""One function on any number of devices: a 1-D mesh with the axis `data`, mapped by shard_map."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from simcis_jax.errors import InputError

AXIS = 'data'
REPLICATED, SPLIT = PartitionSpec(), PartitionSpec(AXIS)


def start_processes() -> None:
    """Joins this process with the others of the run; to be called before anything uses a device.

    On TPU pods, SLURM, Open MPI and Kubernetes JAX finds them by itself. Elsewhere the environment
    says JAX_COORDINATOR_ADDRESS=HOST:PORT of process 0, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
        InputError: there is nothing to find them by.
    """
    count, index = (os.environ.get(name) for name in ('JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'))
    try:
        jax.distributed.initialize(
            num_processes=int(count) if count else None, process_id=int(index) if index else None
        )
    except (ValueError, TypeError) as error:
        raise InputError(
            f'--distributed: {error} On TPU pods, SLURM, Open MPI and Kubernetes the processes are '
            'found; elsewhere set JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and '
            'JAX_PROCESS_ID.'
        ) from error


def is_main() -> bool:
    """Whether this is process 0: the one that writes and prints."""
    return jax.process_index() == 0


def wait_for_all(place: str) -> None:
    """Until every process has come to this place."""
    multihost_utils.sync_global_devices(place)


def make_mesh(batch_size: int) -> Mesh:
    """All devices in a row.

    Raises:
        InputError: the global batch cannot be divided among the devices.
    """
    num_devices = jax.device_count()
    if batch_size % num_devices:
        raise InputError(
            f'training.batch_size={batch_size} is global and must be a multiple of the '
            f'{num_devices} devices.'
        )
    return _make_mesh(jax.devices())


def make_local_mesh() -> Mesh:
    """The devices of this process in a row: for work that processes do apart."""
    return _make_mesh(jax.local_devices())


def map_over_devices(
    function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any, donate: tuple[int, ...] = ()
) -> Callable:
    """Compiles a per-device function; its collectives name the axis `AXIS`."""
    # Replication is not checked: the assignment solver's loops do not carry that annotation.
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    return jax.jit(mapped, donate_argnums=donate)


def first_row(num_rows: int) -> Array:
    """Position in the global batch of this device's first row; call it inside a mapped function."""
    return jax.lax.axis_index(AXIS) * num_rows


def gather_rows(rows: Array) -> Array:
    """All devices' rows, in the order of the global batch."""
    return jax.lax.all_gather(rows, AXIS, tiled=True)


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """This process's rows of a batch as arrays that are split over all devices of the mesh."""
    sharding = NamedSharding(mesh, SPLIT)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )


def put_replicated(mesh: Mesh, tree: Any) -> Any:
    """The same arrays on every device; every process must hold them."""
    sharding = NamedSharding(mesh, REPLICATED)

    def put(x):
        if getattr(x, 'sharding', None) == sharding:
            return x
        copies = [jax.device_put(x, device) for device in mesh.local_devices]
        return jax.make_array_from_single_device_arrays(jnp.shape(x), sharding, copies)

    return jax.tree.map(put, tree)


def replicated_like(mesh: Mesh, shapes: Any) -> Any:
    """Shapes and types, marked to live on every device: what a checkpoint is restored into."""
    sharding = NamedSharding(mesh, REPLICATED)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def local_replicas(mesh: Mesh, tree: Any) -> Any:
    """The same arrays on every device of this process; what lies there already is not copied."""
    sharding = NamedSharding(mesh, REPLICATED)

    def local(x):
        if not isinstance(x, Array) or x.is_fully_addressable:
            return jax.device_put(x, sharding)
        replicas = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, replicas)

    return jax.tree.map(local, tree)


def gather_objects(value: Any) -> list[Any]:
    """What each process passed, in their order; every process must call it and gets all.

    Bytes travel, not arrays: JAX would make 64-bit counts 32-bit ones.
    """
    if jax.process_count() == 1:
        return [value]
    content = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(content.size))
    rows = multihost_utils.process_allgather(np.resize(content, int(sizes.max())))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def _make_mesh(devices: list[jax.Device]) -> Mesh:
    axis_types = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=axis_types, devices=devices)
