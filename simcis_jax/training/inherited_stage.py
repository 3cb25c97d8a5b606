"""The start of a run from a finished stage of another run, or from a converted model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.serialization
import jax
import numpy as np

from simcis_jax.continual.stages import Stage
from simcis_jax.data.category_list import read_categories
from simcis_jax.errors import InputError
from simcis_jax.port.architecture import count_classes
from simcis_jax.runtime import parallel
from simcis_jax.settings.validated import Settings, from_config
from simcis_jax.training.checkpointing import StageCheckpoints, keep_only
from simcis_jax.training.find_stage import find_stage
from simcis_jax.training.stage_folder import StageFolder
from simcis_jax.training.workdir import Workdir, recorded_config
from simcis_jax.types import Categories

# Maps a number of classes to random parameters and the memory before the first stage.
Initialize = Callable[[int], tuple[Any, Any]]


def finished_stage(
    path: str, stages: Sequence[Stage], categories: Categories, initialize: Initialize
) -> StageFolder:
    """The folder of a finished stage, after checking that its model fits this run.

    A stage is finished if it was evaluated, or if its checkpoint holds weights only (a converted
    model). The model may have fewer classes than this run's data set; the data set must then list
    the classes of the model first.

    Args:
        path: the folder of the stage.
        stages: the stages of this run.
        categories: the classes of this run's data set.
        initialize: makes the parameters and the memory to compare with.

    Raises:
        InputError: the stage is not finished, this run has no stage of this number, or network or
            classes differ.
    """
    folder = find_stage(path, 'training.init_from', accept_run=False)
    if folder.number > len(stages):
        raise InputError(
            f'training.init_from={path} is stage {folder.number}, but protocol.base and '
            f'.increment make {len(stages)} stages; set them as in the run of that '
            'stage, or add stages with protocol.added.'
        )
    if not folder.is_finished:
        raise InputError(
            f'training.init_from={path} is not finished, it has no evaluation.json; repeat the '
            'command that trains it to the end.'
        )
    with StageCheckpoints(folder.checkpoints) as checkpoints:
        num_known = _count_classes(folder, checkpoints)
        learned = stages[folder.number - 1].seen
        if max(learned) >= num_known or num_known > len(stages[-1].seen):
            raise InputError(
                f'training.init_from={path} has a class head for {num_known} classes, but after '
                f'stage {folder.number} this run has seen {len(learned)} of '
                f'{len(stages[-1].seen)}, up to label {max(learned)}. New classes must come last '
                'in the data set and in protocol.order.'
            )
        _check_classes(folder, categories)
        _check_stages(folder, stages, categories)
        params, memory = jax.eval_shape(lambda: initialize(num_known))
        checkpoints.check('params', params, 'model.* to the values of its run')
        checkpoints.check('memory', memory, 'method.* to the values of its run')
    return folder


def check_network(source: StageFolder, settings: Settings, stages: Sequence[Stage]) -> None:
    """Checks what the shapes of parameters do not show of the network that a stage trained.

    Raises:
        InputError: it computes something else than the network of this run.
    """
    recorded = recorded_config(source.root.parent)
    if recorded is None:  # A converted model.
        return
    there, here = (
        values.method.make_model(stages, values.model)
        for values in (from_config(recorded), settings)
    )
    for name, owner in (('attention_order', 'model'), ('num_heads', 'model'), ('masks', 'method')):
        old, new = getattr(there, name), getattr(here, name)
        if old != new:
            raise InputError(
                f'training.init_from={source.root} was trained with a network whose {name} is '
                f'{old!r}, this run has {new!r}; set {owner}.* as in its run.'
            )


def inherit(
    workdir: Workdir, source: StageFolder, num_classes: int, initialize: Initialize
) -> None:
    """Copies a finished stage, and the evaluated stages before it, into a work directory.

    A model with fewer than `num_classes` classes is extended: the class head gets random rows, the
    memory empty rows, and what the network has for each stage random values; everything else keeps
    its learned values.
    """
    for number in range(1, source.number):
        stage = StageFolder(source.root.parent / f'stage_{number}')
        if stage.read_report() is not None:
            workdir.stage(number).copy_from(stage)
    target = workdir.stage(source.number)
    with StageCheckpoints(source.checkpoints) as checkpoints:
        num_known = _count_classes(source, checkpoints)
        if target.read_report() is not None:
            return
        if num_known == num_classes and not source.reads_best:
            target.copy_from(source)
            return
        step, params = checkpoints.latest_step, checkpoints.read('params')
        memory = checkpoints.read('memory') if checkpoints.has('memory') else None
    new_params, new_memory = initialize(num_classes)
    params = _extend(params, new_params, num_known, num_classes)
    if memory is not None:
        memory = _extend(
            memory, flax.serialization.to_state_dict(new_memory), num_known, num_classes
        )
    if target.writes:  # An interrupted run may have written it already.
        keep_only(target.checkpoints, ())
    parallel.wait_for_all('inherited')
    with StageCheckpoints(target.checkpoints) as checkpoints:
        checkpoints.save_weights(step, params, memory)
    report = None if source.reads_best else source.read_report()  # That of the newest weights.
    if report is not None:
        target.write_report(report)


def _check_classes(folder: StageFolder, categories: Categories) -> None:
    """Checks that every label means the same class in both data sets; ids may differ."""
    path = folder.root.parent / 'categories.json'
    if not path.is_file():  # Converted models have no class names.
        return
    learned = read_categories(path)
    for label, (known, now) in enumerate(zip(learned.words, categories.words, strict=False)):
        if known != now:
            raise InputError(
                f'training.init_from={folder.root}: label {label} is {known} in {path} and '
                f'{now} in this data set. The model would take one class for the other: give '
                'new classes higher ids than the old ones, and keep old names and thing flags.'
            )


def _check_stages(folder: StageFolder, stages: Sequence[Stage], categories: Categories) -> None:
    """Checks that the stage, and those before it, learned the classes that they have here."""
    for stage in stages[: folder.number]:
        earlier = StageFolder(folder.root.parent / f'stage_{stage.number}')
        report = earlier.read_report()
        here = {categories.names[label] for label in stage.seen}
        if report is not None and set(report['per_class']) != here:
            other = min(set(report['per_class']) ^ here)
            raise InputError(
                f'training.init_from: after {earlier.root}, the model knows '
                f'{len(report["per_class"])} classes, and after stage {stage.number} of this run '
                f'{len(here)}; {other!r} is only among those of one. Set protocol.base, .increment '
                'and .order as in the run of that stage.'
            )


def _count_classes(folder: StageFolder, checkpoints: StageCheckpoints) -> int:
    """The number of classes of a run, or of a converted model."""
    path = folder.root.parent / 'categories.json'
    if path.is_file():
        return len(read_categories(path))
    return count_classes(checkpoints.shapes('params'))


def _extend(old: Any, new: Any, num_known: int, num_classes: int) -> Any:
    """The new arrays, with the old ones at the beginning; "no object" stays the last row."""
    if isinstance(new, Mapping):
        return {
            key: _extend(old[key], x, num_known, num_classes)
            if key in old
            else jax.tree.map(np.array, x)
            for key, x in new.items()
        }
    places = [np.arange(size) for size in old.shape]
    for axis, sizes in enumerate(zip(old.shape, new.shape, strict=True)):
        if sizes == (num_known + 1, num_classes + 1):
            places[axis][-1] = num_classes
    extended = np.array(new)  # Arrays of one process only could not be saved.
    extended[np.ix_(*places)] = old
    return extended
