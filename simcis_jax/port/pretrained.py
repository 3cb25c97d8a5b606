"""Pretrained models of the original Mask2Former, from transformers or detectron2."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from simcis_jax.errors import InputError, naming
from simcis_jax.port import growing_models, hugging_face, names, state_dicts
from simcis_jax.port.architecture import plain_settings


class Pretrained(NamedTuple):
    """A model that was trained elsewhere."""

    path: str  # Where it was read.
    params: dict[str, Any]
    num_classes: int
    settings: dict[str, Any]  # Of the config group `model`.
    class_names: tuple[str, ...] | None  # None: the file has none.
    image_sides: dict[str, int]  # Of the config group `evaluation`, as far as the files say.


def is_pretrained(path: str | Path) -> bool:
    """Whether a path is a folder of transformers or a file, and no folder of a stage or run."""
    return Path(path).is_file() or hugging_face.is_folder_of_model(path)


def read(path: str | Path) -> Pretrained:
    """Reads a folder of transformers, its weights file, or a file of the original Mask2Former.

    Raises:
        InputError: it holds another model, or its weights are incomplete, unknown or damaged.
        FileError: a file is missing or cannot be read.
    """
    given, path = str(path), Path(path)
    if path.name in hugging_face.WEIGHTS and hugging_face.is_folder_of_model(path.parent):
        path = path.parent
    if path.is_dir():
        params, settings, class_names = hugging_face.read(path)
        sides = hugging_face.image_sides(path)
    else:
        state = state_dicts.read_state(path)
        layout, kind = state_dicts.layout_of(state), None
        if layout is names.PUBLISHED and any(key.startswith(names.SELECTION) for key in state):
            kind = 'selected queries'
        elif growing_models.is_growing(state):
            kind = 'the weights of every stage'
        if kind:
            raise InputError(
                f'{path} holds a model with {kind}; convert it with simcis_jax.convert import.'
            )
        params = state_dicts.to_params(path, state, layout)
        class_names, sides = None, {}
        with naming(path):
            settings = plain_settings(params)
    settings = dict(settings)
    return Pretrained(given, params, settings.pop('num_classes'), settings, class_names, sides)
