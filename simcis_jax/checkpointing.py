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


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator='.'): x.shape for path, x in leaves}


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

    def save_weights(self, step: int, params: Any, memory: Any = None) -> None:
        """Writes what another program trained: nothing to go on with inside the stage."""
        items = {'params': params} | ({} if memory is None else {'memory': memory})
        items = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        self._manager.save(step, args=ocp.args.Composite(**items))

    def has(self, item: str) -> bool:
        """Whether the newest checkpoint holds this item: params, memory, rest or data."""
        return (self._manager.directory / str(self.latest_step) / item).exists()

    def shapes(self, item: str) -> dict[str, tuple[int, ...]]:
        """Shapes of the newest params or memory, by names with dots."""
        return _shapes(self._metadata(item))

    def check(self, item: str, like: Any, way_out: str) -> None:
        """Raises ValueError if the newest params or memory have other shapes than `like`.

        Restoring would not: Orbax cuts or pads an array of another shape, and says nothing. There
        may be no memory on either side.

        Args:
            item: params or memory.
            like: arrays, or their shapes.
            way_out: what the user can set.
        """
        if item == 'memory' and not (jax.tree.leaves(like) and self.has('memory')):
            return
        stored, wanted = self.shapes(item), _shapes(like)
        different = sorted(k for k in {*stored, *wanted} if stored.get(k) != wanted.get(k))
        if different:
            name = different[0]
            raise ValueError(
                f'{self._manager.directory}: {item} {name} is {stored.get(name, "absent")} there '
                f'and {wanted.get(name, "absent")} in this config ({len(different)} differ); set '
                f'{way_out}.'
            )

    def read(self, item: str) -> Any:
        """The newest params or memory as nested dicts of arrays, whatever their shapes."""
        host = jax.sharding.SingleDeviceSharding(jax.devices('cpu')[0])
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=host), self._metadata(item)
        )
        return self._manager.restore(
            self.latest_step, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(like)})
        )[item]

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
        if not jax.tree.leaves(like) or not self.has('memory'):
            return like
        return self._restore(memory=ocp.args.StandardRestore(_abstract(like))).memory

    def _metadata(self, item: str) -> Any:
        folder = self._manager.directory / str(self.latest_step) / item
        return ocp.StandardCheckpointHandler().metadata(folder).tree

    def _restore(self, **items: Any) -> Any:
        return self._manager.restore(self.latest_step, args=ocp.args.Composite(**items))
