"""The compiled programs of a training run. Runs of one process with equal settings share them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax import Array
from jax.sharding import Mesh

from simcis_jax.continual.stages import Stage
from simcis_jax.methods.base import Method
from simcis_jax.runtime.compilation import shared
from simcis_jax.settings.keys import OptimizerSettings
from simcis_jax.settings.validated import Settings
from simcis_jax.training import accumulation
from simcis_jax.training.optimizer import make_optimizer
from simcis_jax.training.train_step import make_statistics_step, make_train_step


def train_step_of(
    settings: Settings,
    model: nn.Module,
    mesh: Mesh,
    stage: Stage,
    frozen: frozenset[str] = frozenset(),
) -> Callable:
    """The train step of a config in a stage; see `make_train_step`.

    Raises:
        InputError: `training.microbatch_size` does not divide the images of a device.
    """
    training = settings.training
    return shared(
        make_train_step,
        model_in_stage(settings, model, stage),
        settings.method,
        mesh,
        weights=settings.weights,
        sampling=settings.sampling,
        optimizer=settings.optimizer,
        mask_unseen=settings.protocol.mask_unseen,
        num_microbatches=accumulation.count_microbatches(
            training.batch_size, mesh.size, training.microbatch_size
        ),
        frozen=frozen,
    )


def model_in_stage(settings: Settings, model: nn.Module, stage: Stage) -> nn.Module:
    """The network as a stage trains it."""
    if stage.number < settings.training.stop_gradient_from_stage:
        return model.clone(stop_gradient=False)
    return model


def frozen_parameters(
    settings: Settings, model: nn.Module, stages: Sequence[Stage]
) -> list[frozenset[str]]:
    """For each stage, the paths of the parameters that the method does not train in it."""
    params, _ = jax.eval_shape(initialize_of(settings, model), jax.random.key(0))
    paths, trainable = flatten_dict(params, sep='/'), settings.method.trainable
    return [frozenset(path for path in paths if not trainable(path, stage)) for stage in stages]


def statistics_step_of(settings: Settings, model: nn.Module, mesh: Mesh) -> Callable:
    """The class statistics of a batch; see `make_statistics_step`."""
    return shared(
        make_statistics_step,
        model,
        settings.method,
        mesh,
        mask_unseen=settings.protocol.mask_unseen,
    )


def optimizer_state_of(settings: Settings, frozen: frozenset[str]) -> Callable[[Any], Any]:
    """`initialize(params)`: the state of the optimizer at the start of a stage."""
    return shared(_make_optimizer_state, settings.optimizer, frozen)


def _make_optimizer_state(optimizer: OptimizerSettings, frozen: frozenset[str]) -> Callable:
    return jax.jit(lambda params: make_optimizer(params, optimizer, frozen).init(params))


def initialize_of(settings: Settings, model: nn.Module) -> Callable[[Array], tuple[Any, Any]]:
    """`initialize(key)`: random parameters and the method's memory before the first stage."""
    return shared(_make_initialize, model, settings.method, settings.data.size)


def _make_initialize(model: nn.Module, method: Method, size: int) -> Callable[[Array], tuple]:
    def initialize(key: Array) -> tuple[Any, Any]:
        image = jnp.zeros((1, size, size, 3), jnp.uint8)
        params = model.init(jax.random.fold_in(key, 0), image)['params']
        return params, method.init_memory(model.num_classes, model.hidden_dim)

    return jax.jit(initialize)
