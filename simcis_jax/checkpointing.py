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

    Parameters are an item of their own, so that they can be read without knowing the method or the
    optimizer. The teacher is never written: it is the last checkpoint of the stage before.
    """

    def __init__(self, folder: Path):
        options = ocp.CheckpointManagerOptions(preservation_policy=policies.LatestN(2))
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

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
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                state=ocp.args.StandardSave(state.replace(params=None)),
                data=grain.checkpoint.CheckpointSave(data),
            ),
        )

    def restore(self, like: TrainState, data: grain.DatasetIterator | None = None) -> TrainState:
        """The newest state, on the devices of `like`; moves `data` to its position, if given."""
        items = dict(
            params=ocp.args.StandardRestore(_abstract(like.params)),
            state=ocp.args.StandardRestore(_abstract(like.replace(params=None))),
        )
        if data is not None:
            items['data'] = grain.checkpoint.CheckpointRestore(data)
        restored = self._manager.restore(self.latest_step, args=ocp.args.Composite(**items))
        return restored.state.replace(params=restored.params)
