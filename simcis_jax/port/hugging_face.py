"""Reads and writes folders of transformers' `Mask2FormerForUniversalSegmentation`.

config.json                 the architecture, and the names of the classes
model.safetensors           or pytorch_model.bin, or several files and their index: the weights
preprocessor_config.json    the size of images; optional
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simcis_jax.errors import InputError, MissingFileError, naming, writing
from simcis_jax.model.backbones import BACKBONES, family_of
from simcis_jax.model.mask2former import PIXEL_MEAN, PIXEL_STD
from simcis_jax.port import shards, state_dicts, torch_weights
from simcis_jax.port.architecture import plain_settings
from simcis_jax.port.hugging_face_names import HUGGING_FACE, family_of_names
from simcis_jax.runtime.files import write_atomically
from simcis_jax.runtime.json_files import read_json

CONFIG, PREPROCESSOR = 'config.json', 'preprocessor_config.json'
SINGLE_FILE = 'model.safetensors'
INDEX = '.index.json'  # Added to the name of the file that is split.
# In the order of precedence of transformers.
WEIGHTS = (SINGLE_FILE, SINGLE_FILE + INDEX, 'pytorch_model.bin', 'pytorch_model.bin' + INDEX)
MODEL = 'Mask2FormerForUniversalSegmentation'
# Fields of config.json and the settings that they name. There, decoder_layers counts the initial
# queries, too.
FIELDS = {
    'num_queries': 'num_queries',
    'hidden_dim': 'hidden_dim',
    'feature_size': 'hidden_dim',
    'mask_feature_size': 'hidden_dim',
    'num_attention_heads': 'num_heads',
    'encoder_layers': 'encoder_layers',
    'encoder_feedforward_dim': 'encoder_feedforward',
    'decoder_layers': 'decoder_layers',
    'dim_feedforward': 'decoder_feedforward',
}
# The only values that this network has.
FIXED = {'pre_norm': False, 'activation_function': 'relu', 'common_stride': 4, 'dropout': 0.0}
FIXED_SWIN = {
    'mlp_ratio': 4.0,
    'qkv_bias': True,
    'use_absolute_embeddings': False,
    'hidden_act': 'gelu',
    'layer_norm_eps': 1e-5,
    'patch_size': 4,
    'num_channels': 3,
}
FIXED_RESNET = {
    'layer_type': 'bottleneck',
    'hidden_act': 'relu',
    'downsample_in_bottleneck': False,
    'downsample_in_first_stage': False,
}
FIXED_BACKBONE = {'swin': FIXED_SWIN, 'resnet': FIXED_RESNET}
BACKBONE_FIELDS = {
    'swin': {
        'embed_dim': 'width',
        'depths': 'depths',
        'num_heads': 'num_heads',
        'window_size': 'window',
    },
    'resnet': {'depths': 'blocks', 'hidden_sizes': 'widths', 'embedding_size': 'stem_width'},
}


def is_folder_of_model(path: str | Path) -> bool:
    """Whether a folder holds a model of transformers, of any kind."""
    config = Path(path) / CONFIG
    if not config.is_file():
        return False
    try:
        content = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and 'model_type' in content


def read(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """Reads a folder of transformers.

    Returns:
        The parameters, the settings of `Mask2Former` with `num_classes`, and the class names.

    Raises:
        InputError: it holds another model, its weights are incomplete or unknown, or config.json
            and weights contradict each other.
        FileError: a file is missing or cannot be read.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG, dict)
    if config.get('model_type') != 'mask2former':
        raise InputError(
            f'{folder / CONFIG} describes model_type={config.get("model_type")!r}; give the folder '
            f"of a 'mask2former' ({MODEL})."
        )
    kind = _backbone_config(config).get('model_type', 'swin')
    if kind not in tuple(HUGGING_FACE):
        raise InputError(
            f'{folder / CONFIG} describes the backbone {kind!r}; give a model with one of '
            f'{", ".join(HUGGING_FACE)}.'
        )
    path = weights_file(folder)
    read_arrays = shards.read_arrays if path.name.endswith(INDEX) else state_dicts.read_arrays
    state = read_arrays(path)
    layout = HUGGING_FACE[family_of_names(state)]
    state = state_dicts.as_float32(path, state, layout.ignored)
    with naming(path):
        params = torch_weights.to_flax(state, layout)
        settings = plain_settings(params)
    difference = _difference(config, settings)
    if difference:
        raise InputError(
            f'{folder / CONFIG} does not describe {path.name}: {difference}; download both again '
            'from one repository.'
        )
    return params, settings, class_names(folder, config, settings['num_classes'])


def weights_file(folder: Path) -> Path:
    """The file of the weights in a folder, or their index.

    Raises:
        MissingFileError: there is none.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise MissingFileError(
        f'{folder} holds no weights; download {SINGLE_FILE} or pytorch_model.bin into it, or the '
        f'files that it is split into and their index *{INDEX}.'
    )


def class_names(folder: Path, config: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """The class names of config.json, by label."""
    names = config.get('id2label')
    labels = [str(label) for label in range(num_classes)]
    if not isinstance(names, dict) or sorted(names) != sorted(labels):
        number = len(names) if isinstance(names, dict) else 0
        raise InputError(
            f'{folder / CONFIG}: id2label names {number} classes, but the weights have '
            f'{num_classes}, with the labels 0 to {num_classes - 1}; correct id2label.'
        )
    return tuple(str(names[label]) for label in labels)


def image_sides(folder: str | Path) -> dict[str, int]:
    """The evaluation settings short_side and max_side, if the folder has them.

    A fixed height and width, to which transformers distorts images, are not read.
    """
    path = Path(folder) / PREPROCESSOR
    size = read_json(path, dict).get('size') if path.is_file() else None
    if not isinstance(size, dict):
        return {}
    sides = {'short_side': size.get('shortest_edge'), 'max_side': size.get('longest_edge')}
    return {name: side for name, side in sides.items() if isinstance(side, int)}


def _backbone_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    backbone = config.get('backbone_config')
    return backbone if isinstance(backbone, dict) else {}


def _difference(config: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """The first field of config.json that does not describe the network, in words."""
    described = dict(settings, decoder_layers=settings['decoder_layers'] + 1)
    for name, setting in FIELDS.items():
        if name in config and config[name] != described[setting]:
            return f'{name} is {config[name]} there and {described[setting]} in the weights'
    backbone, given = BACKBONES[settings['backbone']], _backbone_config(config)
    fields = backbone.build(**backbone.settings)
    held = {name: getattr(fields, x) for name, x in BACKBONE_FIELDS[backbone.family].items()}
    for name, found in {'model_type': backbone.family, **held}.items():
        value = given.get(name, found)
        value = tuple(value) if isinstance(value, list) else value
        if value != found:
            return f'{name} of the backbone is {value} there and {found} in the weights'
    fixed = FIXED_BACKBONE[backbone.family]
    for where, values in ((config, FIXED), (given, fixed)):
        for name, value in values.items():
            if name in where and where[name] != value:
                return f'{name} is {where[name]!r}, but this network has only {value!r}'
    return None


def write(
    folder: str | Path,
    params: Mapping[str, Any],
    names: Sequence[str],
    *,
    short_side: int = 800,
    max_side: int = 1333,
) -> int:
    """Writes a folder that transformers loads, and returns the number of arrays.

    Args:
        folder: the folder, made if it is missing.
        params: of an original Mask2Former.
        names: of its C classes.
        short_side: shorter side of the images for the preprocessor, in pixels.
        max_side: longer side of the images at most.

    Raises:
        InputError: the network is no original Mask2Former.
        FileError: a file cannot be written.
    """
    folder = Path(folder)
    layout = HUGGING_FACE[family_of(params)]
    state = torch_weights.to_torch(params, layout)
    settings = plain_settings(params)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    state_dicts.write_state(folder / SINGLE_FILE, state | _extra_arrays(state, len(names)))
    config = _config(settings, names)
    preprocessor = {
        'image_processor_type': 'Mask2FormerImageProcessor',
        'size': {'shortest_edge': short_side, 'longest_edge': max_side},
        'size_divisor': 32,
        'do_resize': True,
        'do_rescale': True,
        'rescale_factor': 1 / 255,
        'do_normalize': True,
        'image_mean': (PIXEL_MEAN / 255).round(3).tolist(),
        'image_std': (PIXEL_STD / 255).round(3).tolist(),
        'ignore_index': 255,
        'num_labels': len(names),
    }
    for name, content in ((CONFIG, config), (PREPROCESSOR, preprocessor)):
        write_atomically(folder / name, json.dumps(content, indent=2))
    return len(state)


def _config(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    described = dict(settings, decoder_layers=settings['decoder_layers'] + 1)
    backbone = BACKBONES[settings['backbone']]
    fields = backbone.build(**backbone.settings)
    stages = [f'stage{stage}' for stage in range(1, 5)]
    config = {'model_type': backbone.family, **FIXED_BACKBONE[backbone.family]}
    config |= {name: getattr(fields, x) for name, x in BACKBONE_FIELDS[backbone.family].items()}
    if backbone.family == 'swin':
        config['drop_path_rate'] = 0.3
    return {
        'architectures': [MODEL],
        'model_type': 'mask2former',
        **{name: described[setting] for name, setting in FIELDS.items()},
        **FIXED,
        'backbone_config': config | {'out_features': stages},
        'id2label': {str(label): name for label, name in enumerate(names)},
        'label2id': {name: label for label, name in enumerate(names)},
    }


def _extra_arrays(state: Mapping[str, np.ndarray], num_classes: int) -> dict[str, np.ndarray]:
    """The arrays that transformers expects in a file although nothing reads them here."""
    weights = np.ones(num_classes + 1, np.float32)
    weights[-1] = 0.1  # Of "no object", in its loss.
    extra = {'criterion.empty_weight': weights}
    for key, value in state.items():
        if key.endswith('.running_mean'):
            extra[key.replace('running_mean', 'num_batches_tracked')] = np.zeros((), np.int64)
        if '.hidden_states_norms.stage4.' in key:  # Of a Swin classifier: the same shape.
            extra[key.replace('hidden_states_norms.stage4', 'swin.layernorm')] = value
    return extra
