"""The programs of a run as traced functions of abstract arguments: nothing of full size exists."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from simcis_jax.errors import InputError
from simcis_jax.evaluation.inference import make_network
from simcis_jax.runtime import parallel
from simcis_jax.settings.validated import Settings
from simcis_jax.training.optimizer import make_optimizer
from simcis_jax.training.programs import frozen_parameters, model_in_stage, train_step_of
from simcis_jax.types import Batch, StageArrays, Targets, TrainState

FIRST, LATER, EVALUATION = 'train step, first stage', 'train step, later stage', 'evaluation'


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function of a run, before compilation."""

    function: Callable
    arguments: tuple  # Pytrees of jax.ShapeDtypeStruct.
    images: int  # Of one call on one device.
    side: int  # Of the square images in pixels.


class Programs:
    """The train steps and the evaluation of a config on some devices.

    Args:
        settings: the config.
        num_classes: of the data set.
        devices: to compile for.

    Raises:
        InputError: the batch cannot be divided among the devices, or into microbatches.
    """

    def __init__(self, settings: Settings, num_classes: int, devices: Sequence[jax.Device]):
        training = settings.training
        if training.batch_size % len(devices):
            raise InputError(
                f'training.batch_size={training.batch_size} must be a multiple of the number of '
                f'devices, --devices={len(devices)}.'
            )
        self.settings, self.num_classes = settings, num_classes
        self.mesh = parallel.mesh_of(devices)
        stages = settings.protocol.stages(num_classes)
        self.model = settings.method.make_model(stages, settings.model)
        frozen = frozen_parameters(settings, self.model, stages)
        self.stages = {FIRST: stages[0], LATER: stages[-1]}
        self.frozen = {FIRST: frozen[0], LATER: frozen[-1]}

    def makers(self) -> dict[str, Callable[[], Program]]:
        """Name -> function that creates the program; FIRST may be the program of all stages."""
        found = {FIRST: lambda: self.train_step(FIRST)}
        first, later = (
            (self.frozen[name], model_in_stage(self.settings, self.model, self.stages[name]))
            for name in (FIRST, LATER)
        )
        if self.settings.method.uses_teacher or first != later:
            found[LATER] = lambda: self.train_step(LATER)
        return found | {EVALUATION: self.evaluation}

    def train_step(self, name: str) -> Program:
        """The train step FIRST or LATER, which may have a teacher or train fewer parameters."""
        settings, size, frozen = self.settings, self.settings.data.size, self.frozen[name]
        has_teacher = name == LATER and settings.method.uses_teacher
        params = self.params(size)
        state = TrainState(
            step=self.array(jnp.int32),
            params=params,
            opt_state=self.shapes(make_optimizer(params, settings.optimizer, frozen).init, params),
            memory=self.shapes(
                lambda: settings.method.init_memory(self.num_classes, self.model.hidden_dim)
            ),
            key=self.shapes(lambda: jax.random.key(0)),
            skipped=self.array(jnp.int32),
        )
        rows, slots = settings.training.batch_size, settings.data.max_segments
        targets = Targets(
            segment_map=self.rows(jnp.uint8 if slots <= 255 else jnp.int32, rows, size, size),
            labels=self.rows(jnp.int32, rows, slots),
            boxes=self.rows(jnp.float32, rows, slots, 4),
            dropped=self.rows(jnp.int32, rows),
        )
        classes = self.array(bool, self.num_classes)
        stage = StageArrays(classes, classes, self.array(jnp.int32), self.array(jnp.float32))
        batch = Batch(self.rows(jnp.uint8, rows, size, size, 3), targets)
        step = train_step_of(settings, self.model, self.mesh, self.stages[name], frozen)
        arguments = state, params if has_teacher else None, batch, stage
        return Program(step, arguments, rows // self.mesh.size, size)

    def evaluation(self) -> Program:
        """The network as evaluation calls it, for square images; without post-processing."""
        settings = self.settings.evaluation
        padding, images = settings.padding, -(-settings.batch_size // self.mesh.size)
        side = -(-settings.short_side // padding) * padding
        seen = self.array(bool, self.num_classes) if self.settings.protocol.mask_unseen else None
        rows = images * self.mesh.size
        image, size = self.rows(jnp.uint8, rows, side, side, 3), self.rows(jnp.int32, rows, 2)
        network = make_network(
            self.model, self.mesh, self.settings.method, settings.duplicate_overlap
        )
        return Program(network, (self.params(side), seen, image, size), images, side)

    def params(self, side: int) -> Any:
        """Parameters of the network."""
        image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
        return self.shapes(self.model.init, jax.random.key(0), image)['params']

    def array(self, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        """A replicated array."""
        sharding = NamedSharding(self.mesh, parallel.REPLICATED)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def rows(self, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        """An array whose first axis is split over the devices."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, parallel.SPLIT))

    def shapes(self, function: Callable, *arguments: Any) -> Any:
        """The replicated results of a function, which is not computed."""
        return parallel.replicated_like(self.mesh, jax.eval_shape(function, *arguments))


def bytes_per_device(tree: Any, mesh: Mesh) -> int:
    """Bytes that arguments take on one device."""
    total = 0
    for x in jax.tree.leaves(tree):
        size = x.size * x.dtype.itemsize
        total += size // mesh.size if x.sharding.spec == parallel.SPLIT else size
    return total
