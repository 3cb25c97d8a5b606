"""Checkpoints of a stage: parameters, the method's memory, and the rest of the train state."""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from simcis_jax.errors import FileError, InputError
from simcis_jax.training import manifest
from simcis_jax.types import TrainState

policies = ocp.checkpoint_managers
UNFINISHED = '.orbax-checkpoint-tmp'  # Part of a checkpoint folder's name while it is written.


def _is_raised_as_well(record: logging.LogRecord) -> bool:
    """Whether a log entry is an error that Orbax raises, too, after each of its threads logged it.

    A full disk would be hundreds of lines.
    """
    return record.levelno >= logging.ERROR and '/orbax/' in record.pathname


logging.getLogger('absl').addFilter(lambda record: not _is_raised_as_well(record))


def _abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, 'sharding', None)),
        tree,
    )


def shapes_by_name(tree: Any, separator: str = '.') -> dict[str, tuple[int, ...]]:
    """The shape of every array in nested dicts, by the keys that lead to it."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    name = functools.partial(jax.tree_util.keystr, simple=True, separator=separator)
    return {name(path): x.shape for path, x in leaves}


def discard_damaged(folder: Path) -> list[str]:
    """Removes unfinished checkpoints, and damaged ones newer than the newest intact one.

    Returns:
        One line for every damaged checkpoint that was removed.
    """
    _remove_unfinished(folder)
    removed = []
    for step in reversed(steps_in(folder)):
        damage = manifest.damage(folder / str(step))
        if damage is None:
            break
        shutil.rmtree(folder / str(step))
        removed.append(f'{folder / str(step)} is damaged and was removed: {damage}')
    return removed


def keep_only(folder: Path, steps: Collection[int]) -> None:
    """Removes the checkpoints of other steps, and unfinished ones."""
    _remove_unfinished(folder)
    for step in set(steps_in(folder)).difference(steps):
        shutil.rmtree(folder / str(step))


def steps_in(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, in order."""
    return sorted(int(path.name) for path in folder.glob('*') if path.name.isdecimal())


def _remove_unfinished(folder: Path) -> None:
    for path in folder.glob(f'*{UNFINISHED}*'):
        shutil.rmtree(path, ignore_errors=True)


class StageCheckpoints:
    """The checkpoints of one stage in one folder, written in the background; the last are kept.

    Parameters and the method's memory are separate items: the next stage reads them without the
    optimizer state, and another method reads the parameters without the memory. The teacher is not
    saved, because it is the last checkpoint of the previous stage; nor is the position in the data,
    because it follows from the step.

    A checkpoint gets its final name only when all items and its manifest are written, and is
    verified against the manifest before it is read.
    """

    def __init__(self, folder: Path, *, keep: int = 2):
        self._folder = folder.resolve()
        self._size = 0  # Bytes of the last saved state.
        self._writing = self._verified = None  # Steps.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.LatestN(keep),
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
        )
        # Without named handlers, reading one item logs warnings about the others.
        handlers = {name: ocp.StandardCheckpointHandler() for name in ('params', 'memory', 'rest')}
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    def __enter__(self) -> StageCheckpoints:
        return self

    def __exit__(self, *_) -> None:
        with self._explaining_failures():
            self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Starts writing a checkpoint; the caller may donate the state as soon as this returns.

        Raises:
            FileError: this checkpoint or the previous one could not be written.
        """
        items = {'params': state.params, 'rest': state.replace(params=None, memory=None)}
        if jax.tree.leaves(state.memory):
            items['memory'] = state.memory
        self._save(step, items)

    def wait(self) -> None:
        """Blocks until the last checkpoint is complete; raises FileError as `save` does."""
        with self._explaining_failures():
            self._manager.wait_until_finished()

    def save_weights(self, step: int, params: Any, memory: Any = None) -> None:
        """Writes a checkpoint without optimizer state, from which the stage cannot be resumed."""
        self._save(
            step, {'params': params} | ({'memory': memory} if jax.tree.leaves(memory) else {})
        )

    def has(self, item: str) -> bool:
        """Whether the newest checkpoint has this item: params, memory or rest."""
        return (self._folder / str(self.latest_step) / item).exists()

    def shapes(self, item: str) -> dict[str, tuple[int, ...]]:
        """Shapes of the newest params or memory, by dotted names."""
        return shapes_by_name(self._metadata(item))

    def check(self, item: str, like: Any, way_out: str) -> None:
        """Checks that the newest params or memory have the shapes of `like`.

        Restoring does not check: Orbax silently crops or pads an array of another shape. A memory
        that is missing in `like` or in the checkpoint passes.

        Args:
            item: params or memory.
            like: arrays, or their shapes.
            way_out: what the user can set to make them fit; ends the error message.

        Raises:
            InputError: a name or a shape differs.
        """
        if item == 'memory' and not (jax.tree.leaves(like) and self.has('memory')):
            return
        stored, wanted = self.shapes(item), shapes_by_name(like)
        different = sorted(k for k in {*stored, *wanted} if stored.get(k) != wanted.get(k))
        if different:
            name = different[0]
            raise InputError(
                f'{self._folder}: {item} {name} is {stored.get(name, "absent")} there '
                f'and {wanted.get(name, "absent")} in this config ({len(different)} differ); set '
                f'{way_out}.'
            )

    def read(self, item: str) -> Any:
        """The newest params or memory as nested dicts of arrays, in their saved shapes."""
        host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend='cpu')[0])
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=host), self._metadata(item)
        )
        return self._restore(**{item: ocp.args.StandardRestore(like)})[item]

    def restore(self, like: TrainState) -> TrainState:
        """The newest state, with the shardings of `like`."""
        restored = self._restore(
            params=ocp.args.StandardRestore(_abstract(like.params)),
            rest=ocp.args.StandardRestore(_abstract(like.replace(params=None, memory=None))),
        )
        return restored.rest.replace(
            params=restored.params, memory=self.restore_memory(like.memory)
        )

    def restore_params(self, like: Any) -> Any:
        """The newest parameters, with the shardings of `like`."""
        return self._restore(params=ocp.args.StandardRestore(_abstract(like))).params

    def restore_memory(self, like: Any) -> Any:
        """The newest memory; `like` itself if the method or the checkpoint has none."""
        if not jax.tree.leaves(like) or not self.has('memory'):
            return like
        return self._restore(memory=ocp.args.StandardRestore(_abstract(like))).memory

    def _metadata(self, item: str) -> Any:
        return ocp.StandardCheckpointHandler().metadata(self._verified_folder() / item).tree

    def _restore(self, **items: Any) -> Any:
        self._verified_folder()
        return self._manager.restore(self.latest_step, args=ocp.args.Composite(**items))

    def _verified_folder(self) -> Path:
        """The folder of the newest checkpoint, verified against its manifest the first time.

        Raises:
            InputError: a file is missing, truncated or changed.
        """
        step = self.latest_step
        folder = self._folder / str(step)
        if self._verified != step:
            damage = manifest.damage(folder)
            if damage:
                raise InputError(
                    f'{folder} is damaged: {damage}. Restore it from a copy; or delete '
                    f'{self._folder.parent}/evaluation.json and repeat the command that trained '
                    'this stage, which resumes it from an older checkpoint or from its start.'
                )
            self._verified = step
        return folder

    def _save(self, step: int, items: dict[str, Any]) -> None:
        self.wait()
        self._writing, self._size = step, sum(x.nbytes for x in jax.tree.leaves(items))
        items = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        with self._explaining_failures():
            if not self._manager.save(step, args=ocp.args.Composite(**items)):
                raise RuntimeError(f'Orbax keeps step {self.latest_step} as the newest')

    def _write_manifest(self) -> None:
        """Orbax calls this in the background, after writing all items and before the rename."""
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
                'previous checkpoint is intact: free some space and repeat the command. '
                f'({reason.splitlines()[0]})'
            ) from error
