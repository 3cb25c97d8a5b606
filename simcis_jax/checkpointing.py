"""Checkpoints of a stage: parameters, the rest of the train state, and the position in the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from simcis_jax.train_step import TrainState

policies = ocp.checkpoint_managers


def _abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, 'sharding', None)),
        tree,
    )


class StageCheckpoints:
    """The checkpoints of one stage in one folder, written in the background, the last two kept.

    Parameters and the method's memory are items of their own, so that the next stage can read them
    without knowing the optimizer, and another method without knowing the memory. The teacher is
    never written: it is the last checkpoint of the stage before.
    """

    def __init__(self, folder: Path):
        options = ocp.CheckpointManagerOptions(preservation_policy=policies.LatestN(2))
        # Named, so that reading one item does not warn of the others.
        handlers = {name: ocp.StandardCheckpointHandler() for name in ('params', 'memory', 'rest')}
        handlers['data'] = grain.checkpoint.CheckpointHandler()
        self._manager = ocp.CheckpointManager(
            folder.resolve(), options=options, item_handlers=handlers
        )

    def __enter__(self) -> StageCheckpoints:
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """Steps done in the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data: grain.DatasetIterator) -> None:
        """Starts writing a checkpoint; the state may be used on as soon as this returns."""
        items = dict(
            params=ocp.args.StandardSave(state.params),
            rest=ocp.args.StandardSave(state.replace(params=None, memory=None)),
            data=grain.checkpoint.CheckpointSave(data),
        )
        if jax.tree.leaves(state.memory):
            items['memory'] = ocp.args.StandardSave(state.memory)
        self._manager.save(int(state.step), args=ocp.args.Composite(**items))

    def restore(self, like: TrainState, data: grain.DatasetIterator) -> TrainState:
        """The newest state, on the devices of `like`; moves `data` to its position."""
        restored = self._restore(
            params=ocp.args.StandardRestore(_abstract(like.params)),
            rest=ocp.args.StandardRestore(_abstract(like.replace(params=None, memory=None))),
            data=grain.checkpoint.CheckpointRestore(data),
        )
        return restored.rest.replace(
            params=restored.params, memory=self.restore_memory(like.memory)
        )

    def restore_params(self, like: Any) -> Any:
        """The newest parameters, on the devices of `like`."""
        return self._restore(params=ocp.args.StandardRestore(_abstract(like))).params

    def restore_memory(self, like: Any) -> Any:
        """The newest memory; `like` itself if the method has none, or the checkpoint has none."""
        has_memory = (self._manager.directory / str(self.latest_step) / 'memory').exists()
        if not jax.tree.leaves(like) or not has_memory:
            return like
        return self._restore(memory=ocp.args.StandardRestore(_abstract(like))).memory

    def _restore(self, **items: Any) -> Any:
        return self._manager.restore(self.latest_step, args=ocp.args.Composite(**items))
