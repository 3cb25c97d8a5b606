"""Weights to start the first stage from: of a pretrained Mask2Former, or of a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from simcis_jax.data.class_names import first_difference
from simcis_jax.errors import InputError, MissingFileError, naming
from simcis_jax.model.backbones import family_of
from simcis_jax.port.architecture import backbone_name
from simcis_jax.port.pretrained import Pretrained
from simcis_jax.port.state_dicts import read_backbone
from simcis_jax.training.checkpointing import StageCheckpoints, shapes_by_name
from simcis_jax.training.stage_folder import StageFolder
from simcis_jax.types import Categories


def check_network(pretrained: Pretrained, model: Mapping[str, Any]) -> None:
    """Checks that a pretrained model has the network of a run.

    Args:
        pretrained: the model.
        model: the values of the config group `model`.

    Raises:
        InputError: a value differs.
    """
    for name, value in pretrained.settings.items():
        if model[name] != value:
            raise InputError(
                f'training.init_from={pretrained.path} has {name}={value!r}, but model.{name} is '
                f'{model[name]!r}; set --config.model.{name}={value}.'
            )


def head_difference(pretrained: Pretrained, categories: Categories) -> str | None:
    """How the classes of a pretrained model differ from those of a run, in words; None if not.

    Of a file without class names, only their number is compared.
    """
    if pretrained.class_names is None:
        found, now = pretrained.num_classes, len(categories)
        return None if found == now else f'{found} classes and {now}'
    return first_difference(pretrained.class_names, categories.names)


def with_pretrained(params: Any, pretrained: Pretrained, categories: Categories) -> Any:
    """The parameters with those of a pretrained model; its class head only if it fits.

    Prints whether the head was kept.
    """
    heads, new = pretrained.params['heads'], params['heads']['class_head']
    difference = head_difference(pretrained, categories)
    kept = f'replaced, its classes differ: {difference}' if difference else 'kept'
    if jax.tree.structure(new) != jax.tree.structure(heads['class_head']):
        kept = 'replaced, this network has other layers there'
    print(f'starting from {pretrained.path}; class head {kept}', flush=True)
    heads = params['heads'] | heads
    if kept != 'kept':
        heads |= {'class_head': new}
    return params | pretrained.params | {'heads': heads}


def save_as_stage(
    folder: StageFolder, pretrained: Pretrained, categories: Categories, shapes: Any
) -> None:
    """Saves a pretrained model as the checkpoint of a stage.

    Args:
        folder: of the stage.
        pretrained: the model.
        categories: the classes of the run.
        shapes: those of the parameters of the run's network.

    Raises:
        InputError: the model has other classes or layers than the run.
    """
    difference = head_difference(pretrained, categories)
    if difference:
        raise InputError(
            f'training.init_from={pretrained.path} has other classes than the data set '
            f'({difference}), so it cannot be evaluated there; give its own data set, or train it.'
        )
    found, needed = shapes_by_name(pretrained.params, '/'), shapes_by_name(shapes, '/')
    if found != needed:
        path = min(path for path in {*found, *needed} if found.get(path) != needed.get(path))
        raise InputError(
            f'training.init_from={pretrained.path} has other layers than the network of this run '
            f'({path}), so it cannot be evaluated there; choose a method.name that adds no layers.'
        )
    with StageCheckpoints(folder.checkpoints) as checkpoints:
        checkpoints.save_weights(0, pretrained.params)


def check_not_scored(last: StageFolder) -> None:
    """Checks that the last stage of a run is not a pretrained model that was evaluated there.

    Raises:
        InputError: it is; the stage would count as trained.
    """
    newest = last.newest_checkpoint
    if newest is not None and newest.name == '0' and not (newest / 'rest').exists():
        raise InputError(
            f'{last.root.parent} holds the scores of the pretrained model that --mode=evaluate '
            'wrote; choose another --workdir to train it.'
        )


def with_backbone(params: Any, path: str) -> Any:
    """Parameters with the backbone replaced by pretrained weights.

    Args:
        params: arrays or their shapes.
        path: ImageNet weights, a complete published model, or a folder that simcis_jax.convert
            made.

    Raises:
        InputError: the file does not hold the backbone of this model.
        MissingFileError: there is no such file.
        FileError: the file cannot be read.
    """
    folder = StageFolder(Path(path))
    if folder.newest_checkpoint:
        with StageCheckpoints(folder.checkpoints) as checkpoints:
            read = checkpoints.read('params')
    else:
        try:
            read = read_backbone(path)
        except MissingFileError:
            raise MissingFileError(
                f'training.init_backbone={path} does not exist; give the ImageNet weights of the '
                'backbone, or --config.training.init_backbone= to begin with random weights.'
            ) from None
    family = family_of(params)
    backbone = read.get(family, {})
    expected, found = shapes_by_name(params[family], '/'), shapes_by_name(backbone, '/')
    if expected == found:
        return params | {family: backbone}
    name = backbone_name(params)
    with naming(f'training.init_backbone={path}'):
        other = backbone_name(read)
    if name != other:
        raise InputError(
            f'training.init_backbone={path} is a {other}, but model.backbone is {name}; set '
            f'--config.model.backbone={other}.'
        )
    key = min(key for key in expected | found if expected.get(key) != found.get(key))
    raise InputError(
        f'training.init_backbone={path} is a changed {name}: {key} has shape {found.get(key)} '
        f'instead of {expected.get(key)}; give the weights of an unchanged one.'
    )
