"""Loads a pretrained model of the original Mask2Former for prediction."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simcis_jax.data.category_list import read_categories
from simcis_jax.data.class_names import named_categories
from simcis_jax.errors import InputError
from simcis_jax.methods import NO_METHOD
from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.port import pretrained
from simcis_jax.prediction.trained_model import TrainedModel
from simcis_jax.settings.validated import from_config

# Of the original Mask2Former on COCO; a folder of transformers may have its own sides.
EVALUATION = dict(
    object_mask_threshold=0.8,
    overlap_threshold=0.8,
    semantic_rule='soft_sum',
    short_side=800,
    max_side=1333,
)


def load_pretrained(
    path: str | Path,
    categories: str | Path | None,
    config: Mapping[str, Any],
    evaluation: Mapping[str, Any],
) -> TrainedModel:
    """Reads a pretrained model.

    Args:
        path: of the model, see `port.pretrained`.
        categories: JSON file with COCO categories; None = the class names of the model.
        config: config whose group `evaluation` replaces the values of the original.
        evaluation: values that replace those of both.

    Raises:
        InputError: the file holds no such model, or the categories do not fit or are missing.
        FileError: a file cannot be read.
    """
    model = pretrained.read(path)
    values = from_config(
        {
            'data': {'max_segments': 1},  # Only training has targets.
            'method': {'name': NO_METHOD},
            'model': model.settings,
            'evaluation': EVALUATION
            | model.image_sides
            | config.get('evaluation', {})
            | dict(evaluation),
        }
    )
    if categories is not None:
        known = read_categories(categories)
    elif model.class_names is not None:
        known = named_categories(model.class_names)
    else:
        raise InputError(
            f'{path} has no class names; give --categories=FILE, a JSON with COCO categories.'
        )
    if len(known) != model.num_classes:
        raise InputError(
            f'--categories={categories} lists {len(known)} classes, but {path} has '
            f'{model.num_classes}; give the categories of its data set.'
        )
    network = Mask2Former(num_classes=len(known), **values.model)
    return TrainedModel(model.params, network, known, None, values.evaluation, values.method)
