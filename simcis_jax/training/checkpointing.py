"""Checkpoints of a stage: parameters, the method's memory, and the rest of the train state."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from simcis_jax.errors import FileError, InputError
from simcis_jax.training import manifest
from simcis_jax.training.train_step import TrainState

policies = ocp.checkpoint_managers
UNFINISHED = '.orbax-checkpoint-tmp'  # In the name of a folder that is still being written.


def _abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, 'sharding', None)),
        tree,
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator='.'): x.shape for path, x in leaves}


def discard_damaged(folder: Path) -> list[str]:
    """Removes what nobody can go on from; says what it was.

    That is what was never finished, and damaged checkpoints as far as they are newer than the
    newest one that is whole.
    """
    _remove_unfinished(folder)
    steps = sorted((int(p.name) for p in folder.glob('*') if p.name.isdigit()), reverse=True)
    removed = []
    for step in steps:
        damage = manifest.damage(folder / str(step))
        if damage is None:
            break
        shutil.rmtree(folder / str(step))
        removed.append(f'{folder / str(step)} is damaged and was removed: {damage}')
    return removed


def _remove_unfinished(folder: Path) -> None:
    for path in folder.glob(f'*{UNFINISHED}*'):
        shutil.rmtree(path, ignore_errors=True)


class StageCheckpoints:
    """The checkpoints of one stage in one folder, written in the background, the last two kept.

    Parameters and the method's memory are items of their own, so that the next stage can read them
    without knowing the optimizer, and another method without knowing the memory. The teacher is
    never written: it is the last checkpoint of the stage before. Nor is the position in the data:
    it is the step.

    A checkpoint gets its name when it is complete and its manifest is written, and is compared with
    the manifest before it is read.
    """

    def __init__(self, folder: Path):
        self._folder = folder.resolve()
        self._size = 0  # Bytes of the state that was saved last.
        self._writing = self._whole = None  # Steps.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.LatestN(2),
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
        )
        # Named, so that reading one item does not warn of the others.
        handlers = {name: ocp.StandardCheckpointHandler() for name in ('params', 'memory', 'rest')}
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    def __enter__(self) -> StageCheckpoints:
        return self

    def __exit__(self, *_) -> None:
        with self._explaining_failures():
            self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """Steps done in the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Starts writing a checkpoint; the state may be used on as soon as this returns.

        Raises:
            FileError: this checkpoint, or the one before, could not be written.
        """
        items = {'params': state.params, 'rest': state.replace(params=None, memory=None)}
        if jax.tree.leaves(state.memory):
            items['memory'] = state.memory
        self._save(step, items)

    def wait(self) -> None:
        """Until the last checkpoint is complete; raises OSError as `save` does."""
        with self._explaining_failures():
            self._manager.wait_until_finished()

    def save_weights(self, step: int, params: Any, memory: Any = None) -> None:
        """Writes what another program trained: nothing to go on with inside the stage."""
        self._save(step, {'params': params} | ({} if memory is None else {'memory': memory}))

    def has(self, item: str) -> bool:
        """Whether the newest checkpoint holds this item: params, memory or rest."""
        return (self._folder / str(self.latest_step) / item).exists()

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
            raise InputError(
                f'{self._folder}: {item} {name} is {stored.get(name, "absent")} there '
                f'and {wanted.get(name, "absent")} in this config ({len(different)} differ); set '
                f'{way_out}.'
            )

    def read(self, item: str) -> Any:
        """The newest params or memory as nested dicts of arrays, whatever their shapes."""
        host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend='cpu')[0])
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=host), self._metadata(item)
        )
        return self._restore(**{item: ocp.args.StandardRestore(like)})[item]

    def restore(self, like: TrainState) -> TrainState:
        """The newest state, on the devices of `like`."""
        restored = self._restore(
            params=ocp.args.StandardRestore(_abstract(like.params)),
            rest=ocp.args.StandardRestore(_abstract(like.replace(params=None, memory=None))),
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
        return ocp.StandardCheckpointHandler().metadata(self._newest_whole() / item).tree

    def _restore(self, **items: Any) -> Any:
        self._newest_whole()
        return self._manager.restore(self.latest_step, args=ocp.args.Composite(**items))

    def _newest_whole(self) -> Path:
        """The folder of the newest checkpoint, compared with its manifest once.

        Raises:
            InputError: a file is missing, torn or changed.
        """
        step = self.latest_step
        folder = self._folder / str(step)
        if self._whole != step:
            damage = manifest.damage(folder)
            if damage:
                raise InputError(
                    f'{folder} is damaged: {damage}. Put back a copy of it; or delete '
                    f'{self._folder.parent}/evaluation.json and repeat the command that made this '
                    'stage, which goes on from an older checkpoint or from its start.'
                )
            self._whole = step
        return folder

    def _save(self, step: int, items: dict[str, Any]) -> None:
        self.wait()
        self._writing, self._size = step, sum(x.nbytes for x in jax.tree.leaves(items))
        items = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        with self._explaining_failures():
            self._manager.save(step, args=ocp.args.Composite(**items))

    def _write_manifest(self) -> None:
        """Called in the background when all items are written, before the folder gets its name."""
        (folder,) = self._folder.glob(f'{self._writing}{UNFINISHED}*')
        manifest.write(folder)

    @contextlib.contextmanager
    def _explaining_failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            _remove_unfinished(self._folder)
            free = shutil.disk_usage(self._folder).free
            reason = str(error).strip() or type(error).__name__
            raise FileError(
                f'{self._folder}: the checkpoint of step {self._writing} could not be written; it '
                f'needs up to {self._size / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free. The '
                f'one before is whole: make room and repeat the command. ({reason.splitlines()[0]})'
            ) from error
