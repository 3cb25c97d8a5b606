"""Loads a trained model: that of a stage, or a pretrained one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simcis_jax.data import open_source
from simcis_jax.data.category_list import read_categories
from simcis_jax.errors import InputError, UserError
from simcis_jax.port.pretrained import is_pretrained
from simcis_jax.prediction.load_pretrained import load_pretrained
from simcis_jax.prediction.trained_model import TrainedModel
from simcis_jax.runtime import parallel
from simcis_jax.runtime.json_files import read_json
from simcis_jax.settings.method_choice import as_dict
from simcis_jax.settings.validated import Settings, from_config, with_defaults
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.find_stage import find_stage
from simcis_jax.training.stage_folder import StageFolder
from simcis_jax.training.workdir import config_difference
from simcis_jax.types import Categories


def load_model(
    checkpoint: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    categories: str | Path | None = None,
    **evaluation: Any,
) -> TrainedModel:
    """Loads a model; arguments and errors are those of `predictor.load`."""
    evaluation = {'batch_size': jax.local_device_count()} | evaluation
    config = None if config is None else as_dict(config)
    if is_pretrained(checkpoint):
        return load_pretrained(checkpoint, categories, config or {}, evaluation)
    folder = find_stage(checkpoint, '--checkpoint')
    recorded = folder.root.parent / 'config.json'
    if config is None and not recorded.is_file():
        raise InputError(
            f'{folder.root.parent} has no config.json of a run; name the config of the model with '
            '--config=NAME.'
        )
    if recorded.is_file():
        config = _recorded_config(recorded, config)
    config['evaluation'] = config.get('evaluation', {}) | evaluation
    values = from_config(config)
    known = _categories(folder.root.parent / 'categories.json', categories, values)
    stages = values.protocol.stages(len(known))
    if folder.number > len(stages):
        raise InputError(
            f'{folder.root} is stage {folder.number}, but protocol.base and .increment make '
            f'{len(stages)} stages; give the config of its run.'
        )
    seen = stages[folder.number - 1].seen
    model = values.method.make_model(stages, values.model)
    return TrainedModel(
        _params(folder, model, values),
        model,
        known,
        np.isin(np.arange(len(known)), seen) if values.protocol.mask_unseen else None,
        values.evaluation,
        values.method,
    )


def _recorded_config(path: Path, given: dict[str, Any] | None) -> dict[str, Any]:
    """The config of a run, with the group `evaluation` of a given one.

    Raises:
        InputError: the given config is that of another model, or there is none and that of the run
            cannot be read.
    """
    config = read_json(path, dict)
    try:
        from_config(config)
    except InputError as error:
        if given is not None:
            return given
        raise InputError(
            f'{path} is not a config that this version can read; give one with --config=FILE. '
            f'{error}'
        ) from None
    if given is None:
        return config
    from_config(given)
    recorded, now = map(with_defaults, (config, given))
    for group in ('protocol', 'model', 'method'):
        difference = config_difference(recorded.get(group), now.get(group), group)
        if difference:
            raise InputError(
                f'--config is not the config of {path.parent}: {difference}; leave out --config, '
                'or give that config with other values of evaluation.*.'
            )
    return config | {'evaluation': given.get('evaluation', {})}


def _categories(recorded: Path, given: str | Path | None, values: Settings) -> Categories:
    if given or recorded.is_file():
        return read_categories(given or recorded)
    data = values.data
    try:
        source = open_source(data.name, data.train_split, root=data.root, size=data.size)
    except UserError as error:
        raise InputError(
            f'{recorded} does not exist, and the data set, which has the class names, cannot be '
            f'opened ({error}); give --categories=FILE, a JSON with COCO categories.'
        ) from None
    return source.categories


def _params(folder: StageFolder, model: nn.Module, values: Settings) -> Any:
    """The newest parameters in a folder, replicated on the devices of this process."""
    size = values.data.size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
    params = jax.eval_shape(model.init, jax.random.key(0), image)['params']
    with StageCheckpoints(folder.checkpoints) as checkpoints:
        checkpoints.check('params', params, 'model.* and the categories to those of its run')
        mesh = parallel.make_local_mesh()
        return checkpoints.restore_params(parallel.replicated_like(mesh, params))
