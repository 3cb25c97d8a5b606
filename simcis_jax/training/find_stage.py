"""Finds the stage folder that a path given by the user refers to."""

from __future__ import annotations

import os
from pathlib import Path

from simcis_jax.errors import InputError, reading
from simcis_jax.training.stage_folder import StageFolder


def find_stage(path: str | Path, argument: str, *, accept_run: bool = True) -> StageFolder:
    """The folder of a stage that has a checkpoint.

    Args:
        path: a folder stage_N, even of a stage that is still training; stage_N/best, the weights
            with the best score inside the stage; or a run's work directory, which means its newest
            finished stage.
        argument: name of the path in error messages, such as '--checkpoint'.
        accept_run: False to reject a work directory, whose newest stage changes during training.

    Raises:
        InputError: the path is neither.
        FileError: the folder cannot be read.
    """
    root = Path(os.path.abspath(path))  # Path('.') has an empty name.
    folder = StageFolder(root)
    if root == StageFolder(root.parent).best:
        folder = StageFolder(root.parent, reads_best=True)
    with reading(path):
        if folder.number and folder.newest_checkpoint:
            return folder
        finished = [stage for stage in stage_folders(folder.root) if stage.is_finished]
        if finished and accept_run:
            return finished[-1]
        reason = _reason(folder, finished)
    wanted = 'a folder stage_N of a run, or one that simcis_jax.convert made'
    if accept_run:
        wanted += ', or the folder of a run with a finished stage'
    raise InputError(f'{argument}={path} must be {wanted}; {reason}')


def stage_folders(root: Path) -> list[StageFolder]:
    """The stage folders in a work directory, in order."""
    folders = [StageFolder(path) for path in root.glob('stage_*') if path.is_dir()]
    return sorted((f for f in folders if f.number), key=lambda folder: folder.number)


def _reason(folder: StageFolder, finished: list[StageFolder]) -> str:
    """Why a path is not a stage, and what to do about it."""
    root = folder.root
    if not root.exists():
        return 'it does not exist.'
    if not root.is_dir():
        return 'it is a file; convert PyTorch weights with simcis_jax.convert import.'
    if finished:
        return f'the newest finished stage in it is {finished[-1].root}.'
    for parent in root.parents:
        if (outer := StageFolder(parent)).number and outer.newest_checkpoint:
            return f'it is inside one: give {parent}.'
    if folder.newest_checkpoint:
        return 'rename it: N is the last stage that the model was trained on.'
    begun = [stage for stage in stage_folders(root) if stage.newest_checkpoint]
    if begun:
        return f'no stage in it is finished; {begun[-1].root} has a checkpoint.'
    return 'it holds no checkpoint; train the stage first.'
