"""What a run may start from: a finished stage of another run, or a pretrained backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from simcis_jax.continual.stages import Stage
from simcis_jax.data.category_list import read_categories
from simcis_jax.errors import InputError
from simcis_jax.port.state_dicts import read_backbone
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.find_stage import find_stage
from simcis_jax.training.workdir import StageFolder, Workdir
from simcis_jax.types import Categories

# Random parameters and the memory before the first stage, for a number of classes.
Initialize = Callable[[int], tuple[Any, Any]]


def finished_stage(
    path: str, stages: Sequence[Stage], categories: Categories, initialize: Initialize
) -> StageFolder:
    """The folder of a finished stage, whose model is known to fit.

    A stage is finished when it was evaluated, or when another program trained it: its checkpoint
    has weights alone. Its model may know fewer classes than this run's data set, which then
    has the same classes first.

    Args:
        path: of the folder.
        stages: of this run.
        categories: of its data set.
        initialize: what the model and the memory look like.

    Raises:
        InputError: it is no finished stage, this run has no such stage, or network or classes
            differ.
    """
    folder = find_stage(path, 'training.init_from', accept_run=False)
    if folder.number > len(stages):
        raise InputError(
            f'training.init_from={path} is stage {folder.number}, but protocol.base and '
            f'.increment make {len(stages)} stages.'
        )
    if not folder.is_finished:
        raise InputError(
            f'training.init_from={path} is not finished, it has no evaluation.json; run its '
            'command again to its end.'
        )
    with StageCheckpoints(folder.checkpoints) as checkpoints:
        num_known = _count_classes(checkpoints)
        learned = stages[folder.number - 1].seen
        if max(learned) >= num_known or num_known > len(stages[-1].seen):
            raise InputError(
                f'training.init_from={path} knows {num_known} classes; stage {folder.number} of '
                f'this run has learned {len(learned)} of {len(stages[-1].seen)}, among them label '
                f'{max(learned)}. New classes must come last in the data set and in protocol.order.'
            )
        _check_classes(folder, categories)
        params, memory = jax.eval_shape(lambda: initialize(num_known))
        checkpoints.check('params', params, 'model.* as it was there')
        checkpoints.check('memory', memory, 'method.bank_size as it was there')
    return folder


def inherit(
    workdir: Workdir, source: StageFolder, num_classes: int, initialize: Initialize
) -> None:
    """Takes over a finished stage, and those before it as far as they were evaluated.

    A model of fewer classes than `num_classes` grows: the rows of the new ones are random in the
    class head and empty in the memory, all else stays as it was learned.
    """
    for number in range(1, source.number):
        stage = StageFolder(source.root.parent / f'stage_{number}')
        if stage.read_report() is not None:
            workdir.stage(number).copy_from(stage)
    target = workdir.stage(source.number)
    with StageCheckpoints(source.checkpoints) as checkpoints:
        num_known = _count_classes(checkpoints)
        if num_known == num_classes or target.read_report() is not None:
            target.copy_from(source)
            return
        step, params = checkpoints.latest_step, checkpoints.read('params')
        memory = checkpoints.read('memory') if checkpoints.has('memory') else None
    new_params, new_memory = jax.jit(initialize, static_argnums=0)(num_classes)
    params = _grow(params, new_params, num_known, num_classes)
    if memory is not None:
        memory = _grow(memory, flax.serialization.to_state_dict(new_memory), num_known, num_classes)
    with StageCheckpoints(target.checkpoints) as checkpoints:
        checkpoints.save_weights(step, params, memory)
    if source.read_report() is not None:
        target.write_report(source.read_report())


def _check_classes(folder: StageFolder, categories: Categories) -> None:
    """Checks that each label stands for one class there and here; ids may differ."""
    path = folder.root.parent / 'categories.json'
    if not path.is_file():  # Converted models know no names.
        return
    learned = read_categories(path)
    for label, (known, now) in enumerate(zip(learned.words, categories.words, strict=False)):
        if known != now:
            raise InputError(
                f'training.init_from={folder.root}: label {label} is {known} in {path} and '
                f'{now} in this data set. The model would take one class for the other: give '
                'new classes ids above those of the old ones, and keep old names and thing flags.'
            )


def _count_classes(checkpoints: StageCheckpoints) -> int:
    return checkpoints.shapes('params')['heads.class_head.dense.bias'][0]


def _grow(old: Any, new: Any, num_known: int, num_classes: int) -> Any:
    """The old arrays, continued by the new ones along the axis that counts classes."""

    def leaf(old, new):
        for axis, sizes in enumerate(zip(old.shape, new.shape, strict=True)):
            if sizes == (num_known, num_classes):
                return np.concatenate([old, np.split(new, [num_known], axis)[1]], axis)
        return np.asarray(old)  # Several processes cannot save what lies on one of them.

    return jax.tree.map(leaf, old, new)


def with_backbone(params: Any, path: str) -> Any:
    """Parameters whose backbone is replaced by pretrained weights.

    Args:
        params: arrays or their shapes.
        path: of ImageNet weights, a whole published model, or a folder of simcis_jax.convert.

    Raises:
        InputError: the file holds no ResNet, or another one.
        FileError: it cannot be read.
    """
    folder = StageFolder(Path(path))
    if folder.newest_checkpoint:
        with StageCheckpoints(folder.checkpoints) as checkpoints:
            resnet = checkpoints.read('params')['resnet']
    else:
        resnet = read_backbone(path)
    shapes = [
        {key: x.shape for key, x in flatten_dict(tree, sep='/').items()}
        for tree in (params['resnet'], resnet)
    ]
    if shapes[0] != shapes[1]:
        raise InputError(
            f'training.init_backbone={path} is another network than model.backbone; set '
            'model.backbone to what the file holds, resnet50 or resnet101.'
        )
    return params | {'resnet': resnet}
