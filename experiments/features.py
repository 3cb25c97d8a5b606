"""Loads the model of any stage of a run, and validation images to apply it to."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import numpy as np

from experiments.first_stages import method_of
from experiments.sweep import Run
from simcis_jax.data.augment import resized_crop, resized_shape
from simcis_jax.data.part import spread
from simcis_jax.data.source import Example
from simcis_jax.errors import InputError
from simcis_jax.settings.validated import from_config
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.stage_data import open_splits


def make_network(run: Run) -> nn.Module:
    """The network that a run trains."""
    return method_of(run.config).make_model(run.stages, run.config['model'])


def load_params(run: Run, stage: int) -> Any:
    """The model parameters after a stage (1 = base).

    Raises:
        InputError: the stage has no checkpoint.
    """
    folder = run.folder / f'stage_{stage}' / 'checkpoints'
    if not folder.is_dir():
        raise InputError(
            f'{folder} does not exist; this experiment needs the checkpoints of all stages.'
        )
    with StageCheckpoints(folder) as checkpoints:
        return checkpoints.read('params')


def validation_examples(run: Run, num_images: int) -> list[Example]:
    """Evenly spaced validation examples, each center-cropped to a square of data.size pixels.

    Args:
        run: run whose data set is read.
        num_images: number of examples; all of them if there are fewer.
    """
    data = from_config(run.config).data
    _, source = open_splits(data)
    indices = spread(np.arange(len(source)), num_images)
    return [center_crop(source[index], data.size) for index in indices.tolist()]


def validation_images(run: Run, num_images: int) -> np.ndarray:
    """The images [N, S, S, 3] uint8 of `validation_examples`."""
    return np.stack([example.image for example in validation_examples(run, num_images)])


def center_crop(example: Example, side: int) -> Example:
    """Resizes the shorter side to `side` pixels and crops the central square."""
    shape = resized_shape(*example.image.shape[:2], short_side=side, max_side=100 * side)
    top, left = ((have - side) // 2 for have in shape)
    return resized_crop(example, shape, (top, left), (side, side))
