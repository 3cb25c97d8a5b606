"""The train state at the start of a stage, and that of a finished stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from simcis_jax.continual.stages import Stage
from simcis_jax.data.source import Source
from simcis_jax.port.pretrained import Pretrained
from simcis_jax.runtime import parallel
from simcis_jax.runtime.progress import Progress
from simcis_jax.settings.validated import Settings
from simcis_jax.training import initial_weights, programs
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.stage_data import statistics_batches
from simcis_jax.training.workdir import Workdir
from simcis_jax.types import StageArrays, TrainState


class StageStates:
    """Makes the states that the stages of a run start with, and reads those they ended with.

    Attributes:
        frozen: for each stage, the paths of the parameters that it does not train.
    """

    def __init__(
        self,
        settings: Settings,
        model: Any,
        mesh: Mesh,
        stages: Sequence[Stage],
        source: Source,
        workdir: Workdir,
    ):
        self.settings, self.model, self.mesh = settings, model, mesh
        self.source, self.categories, self.workdir = source, source.categories, workdir
        self.frozen = programs.frozen_parameters(settings, model, stages)
        self.statistics_step = programs.statistics_step_of(settings, model, mesh)

    def initialize(self, num_classes: int | None = None) -> tuple[Any, Any]:
        """Random parameters and the method's memory before the first stage.

        Args:
            num_classes: number of classes of the network; None = those of this run.
        """
        settings = self.settings
        model = self.model.clone(num_classes=num_classes or len(self.categories))
        initialize = programs.initialize_of(settings, model)
        return initialize(jax.random.key(settings.training.seed))

    def begin(
        self,
        stage: Stage,
        previous: TrainState | None,
        teacher: Any,
        arrays: StageArrays,
        pretrained: Pretrained | None = None,
    ) -> TrainState:
        """The state at the start of a stage, as the method makes it of that of the stage before.

        Args:
            stage: the stage that begins.
            previous: parameters and memory of the stage before; None = there is none.
            teacher: the parameters of the teacher; None = there is none.
            arrays: the stage as arrays, on the devices.
            pretrained: the model that the first stage starts from; None = random parameters.
        """
        state = parallel.put_replicated(self.mesh, self.new(stage, previous))
        if previous is None:
            params = self.with_initial_weights(state.params, pretrained)
            state = state.replace(params=parallel.put_replicated(self.mesh, params))
        method, statistics = self.settings.method, None
        if teacher is not None and method.uses_statistics:
            statistics = self.statistics_of(stage, teacher, arrays)
        state = self.with_optimizer(stage, method.begin_stage(state, arrays, statistics))
        return parallel.put_replicated(self.mesh, state)

    def with_initial_weights(self, params: Any, pretrained: Pretrained | None) -> Any:
        """Random parameters with those of a pretrained model or, without one, of a backbone."""
        backbone = self.settings.training.init_backbone
        if pretrained is not None:
            return initial_weights.with_pretrained(params, pretrained, self.categories)
        return initial_weights.with_backbone(params, backbone) if backbone else params

    def statistics_of(self, stage: Stage, teacher: Any, arrays: StageArrays) -> Any:
        """The statistics of the method, summed over the images of a stage."""
        num_images, batches = statistics_batches(self.source, stage, self.settings)
        progress = Progress(f'stage {stage.number} class statistics', num_images, 'images')
        total = None
        for batch, real in batches:
            batch, real_rows = parallel.put_batch(self.mesh, (batch, real))
            counts = self.statistics_step(teacher, batch, real_rows, arrays)
            total = counts if total is None else jax.tree.map(jnp.add, total, counts)
            progress.advance(int(real.sum()))
        return total

    def new(self, stage: Stage, previous: TrainState | None) -> TrainState:
        """The state before a stage, without optimizer state."""
        training = self.settings.training
        key = jax.random.fold_in(jax.random.key(training.seed), stage.index)
        if previous is None:
            params, memory = self.initialize()
        else:
            params, memory = previous.params, previous.memory
        return TrainState(jnp.int32(0), params, None, memory, key, jnp.int32(0))

    def with_optimizer(self, stage: Stage, state: TrainState) -> TrainState:
        """The state with that of the optimizer at step 0 of a stage."""
        initialize = programs.optimizer_state_of(self.settings, self.frozen[stage.index])
        return state.replace(opt_state=initialize(state.params))

    def finished(self, stage: Stage) -> TrainState:
        """Parameters and memory of a finished stage from its checkpoint; other fields are None."""
        params, _ = jax.eval_shape(self.initialize)
        memory = self.settings.method.init_memory(len(self.categories), self.model.hidden_dim)
        memory = parallel.put_replicated(self.mesh, memory)
        with StageCheckpoints(self.workdir.stage(stage.number).checkpoints) as checkpoints:
            return TrainState(
                step=None,
                params=checkpoints.restore_params(parallel.replicated_like(self.mesh, params)),
                opt_state=None,
                memory=checkpoints.restore_memory(memory),
                key=None,
                skipped=None,
            )
