"""The data of a stage: its arrays, its training batches, and the batches for class statistics."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from simcis_jax.continual import protocol
from simcis_jax.continual.image_memory import NOTHING, Labelled, union
from simcis_jax.continual.stages import Stage
from simcis_jax.data import open_source
from simcis_jax.data.part import at_most, hold_out, spread
from simcis_jax.data.pipeline import TrainIterator, epoch_batches, train_iterator
from simcis_jax.data.source import Source
from simcis_jax.errors import InputError
from simcis_jax.settings.keys import DataSettings
from simcis_jax.settings.validated import Settings
from simcis_jax.types import Batch, StageArrays


def open_splits(data: DataSettings) -> tuple[Source, Source]:
    """The images to train on and those to evaluate on; both use the class list of the former.

    Raises:
        InputError: the splits' class lists contradict each other, a file has a wrong format, or
            `data.hold_out` leaves nothing to evaluate.
        FileError: a file or folder is missing or cannot be read.
    """
    open_split = functools.partial(open_source, data.name, root=data.root, size=data.size)
    training = open_split(data.train_split, num_images=data.num_train_images)
    if data.hold_out:
        training, evaluated = hold_out(training, data.hold_out)
    else:
        evaluated = open_split(
            data.val_split, num_images=data.num_val_images, categories=training.categories
        )
    return at_most(training, data.num_train_images), at_most(evaluated, data.num_val_images)


def num_steps_of(stage: Stage, settings: Settings) -> int:
    """The number of train steps of a stage."""
    training = settings.training
    if stage.index == 0:
        return training.base_steps
    return training.steps_per_class * len(stage.current)


def stage_arrays(stage: Stage, num_classes: int, settings: Settings) -> StageArrays:
    """The stage as arrays, the form in which the train step takes it."""
    optimizer = settings.optimizer
    past, current = stage.masks(num_classes)
    rate = optimizer.later_learning_rate if stage.index else optimizer.base_learning_rate
    num_steps = num_steps_of(stage, settings)
    return StageArrays(past, current, np.int32(num_steps), np.float32(rate), np.int32(stage.index))


def training_batches(
    source: Source, stage: Stage, settings: Settings, memory: Labelled = NOTHING
) -> TrainIterator:
    """This process's rows of the endless batches of a stage.

    An epoch contains every image of the stage and of the memory once; an image in both has the
    labels of both.
    """
    return train_iterator(
        source,
        images=union(_images(source, stage, settings), memory),
        num_workers=settings.data.num_workers,
        **_pipeline(stage, settings),
    )


def statistics_batches(
    source: Source, stage: Stage, settings: Settings
) -> tuple[int, Iterator[tuple[Batch, np.ndarray]]]:
    """Number of images for the class statistics, and their batches with a mask of real rows [B]."""
    images = _images(source, stage, settings)
    chosen = spread(np.asarray([*images]), settings.training.statistics_images or len(images))
    images = {index: images[index] for index in chosen.tolist()}
    return len(images), epoch_batches(source, images=images, **_pipeline(stage, settings))


def check_images(source: Source, stages: Sequence[Stage], settings: Settings) -> None:
    """Raises InputError if a stage has no image to train on."""
    for stage in stages:
        if not _images(source, stage, settings):
            raise InputError(
                f'{source.name!r} has no image for stage {stage.number}, classes '
                f'{list(stage.current)}, in the {settings.protocol.setting} setting; change '
                'protocol.order, protocol.setting or the split.'
            )


def _images(source: Source, stage: Stage, settings: Settings) -> Labelled:
    setting = settings.protocol.setting
    image_classes = [source.classes_of(index) for index in range(len(source))]
    labelled = frozenset(protocol.labelled_classes(stage, setting))
    indices = protocol.stage_images(image_classes, stage, setting)
    return dict.fromkeys(indices.tolist(), labelled)


def _pipeline(stage: Stage, settings: Settings) -> dict[str, Any]:
    """The pipeline settings that training and class statistics share."""
    data, training = settings.data, settings.training
    seeds = np.random.SeedSequence([training.seed, stage.index])
    return dict(
        num_threads=data.num_threads,
        batch_size=training.batch_size,
        seed=int(seeds.generate_state(1)[0]),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        size=data.size,
        max_segments=data.max_segments,
        scale_range=tuple(data.scale_range),
        scale_steps=data.scale_steps,
        flip=data.flip,
        color=data.color,
        keep_empty=data.keep_empty,
    )
