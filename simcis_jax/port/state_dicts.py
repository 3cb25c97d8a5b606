"""Reads and writes state dicts as .pth, .pkl and .safetensors."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from simcis_jax.errors import InputError, reading
from simcis_jax.port import names, torch_files, torch_weights, unsupported
from simcis_jax.port.imagenet_names import imagenet_names
from simcis_jax.port.names import Layout
from simcis_jax.port.pickles import Call, Global
from simcis_jax.runtime.files import replacing

# Module versions for `_metadata`. Without them, the published code silently renames keys of its
# pixel decoder, and detectron2 changes the variances of frozen batch norm.
VERSIONS = {'sem_seg_head': 2, 'sem_seg_head.predictor': 2}
FROZEN_NORM_VERSION = 3
EXACT_IN_FLOAT32 = (np.float32, np.float16, jnp.bfloat16)
WRAPPERS = ('model', 'state_dict')  # Keys of a checkpoint that may hold the state dict.


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a state dict by their names in the file.

    Args:
        path: a .safetensors file, or a file that `torch_files.read` takes; either a state dict or a
            whole checkpoint with optimizer state.

    Raises:
        InputError: the file is damaged or unsafe, or holds no state dict.
        FileError: it cannot be read.
    """
    with unsupported.naming_file(path):
        if _is_safetensors(path):
            state = _read_safetensors(path)
        else:
            state = torch_files.read(path, pick=_state_dict)
        arrays = isinstance(state, dict) and all(isinstance(key, str) for key in state)
        if not arrays or not all(isinstance(value, np.ndarray) for value in state.values()):
            raise InputError(
                f'{path} holds no state dict that maps names of weights to arrays, alone or under '
                f'{" or ".join(map(repr, WRAPPERS))}; save the state dict of the model.'
            )
    return state


def as_float32(
    path: str | Path, state: Mapping[str, np.ndarray], ignored: str
) -> dict[str, np.ndarray]:
    """The weights in float32, without keys that match `ignored` completely.

    Raises:
        InputError: weights are of another type than `EXACT_IN_FLOAT32`.
    """
    kept = {key: x for key, x in state.items() if not re.fullmatch(ignored, key)}
    with unsupported.naming_model(path, state):
        wrong = [key for key, x in kept.items() if x.dtype not in EXACT_IN_FLOAT32]
        if wrong:
            raise InputError(
                f'{wrong[0]} is {kept[wrong[0]].dtype}, but weights must be float32, float16 or '
                'bfloat16; save them as float32.'
            )
    return {key: value.astype(np.float32, copy=False) for key, value in kept.items()}


def read_state(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the weights of a published model or of an ImageNet backbone.

    Args:
        path: a file that `read_arrays` takes.

    Returns:
        published key -> float32 array; ImageNet backbones and old files of the original Mask2Former
        are renamed to the published keys of today.

    Raises:
        InputError: the file is damaged or unsafe, or holds no weights.
        FileError: it cannot be read.
    """
    state = read_arrays(path)
    if not any(key.startswith(('sem_seg_head.', 'backbone.')) for key in state):
        state = imagenet_names(state)
    return as_float32(path, _current_names(state), names.BUFFERS)


def _current_names(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames the keys of the first version of the original Mask2Former, which some files have."""
    if any(key.startswith(f'{names.PIXELS}.') for key in state):
        return dict(state)
    old = re.compile(r'^sem_seg_head\.(?!predictor\.)')
    return {
        old.sub(f'{names.PIXELS}.', key).replace('.static_query.', '.query_feat.'): value
        for key, value in state.items()
    }


def layout_of(state: Collection[str]) -> Layout:
    """The layout of the published model with these keys."""
    selects = any(key.startswith(names.SELECTION) for key in state)
    learns = any(key.startswith(f'{names.PREDICTOR}.query_feat.') for key in state)
    return names.MASK2FORMER[family_in(state)] if learns and not selects else names.PUBLISHED


def family_in(state: Collection[str]) -> str:
    """The family of the backbone of the model with these keys."""
    return 'swin' if any(key.startswith('backbone.patch_embed.') for key in state) else 'resnet'


def to_params(path: str | Path, state: Mapping[str, np.ndarray], layout: Layout) -> dict[str, Any]:
    """Converts the state dict from `read_state` to parameters of our model.

    Args:
        path: the file of the state dict, for error messages.
        state: the state dict.
        layout: its names.

    Raises:
        InputError: a key is missing or unknown; the message names the kind of model, if known.
    """
    with unsupported.naming_model(path, state):
        return torch_weights.to_flax(state, layout)


def read_backbone(path: str | Path) -> dict[str, Any]:
    """Reads the backbone of a published model or ImageNet weights: {family: its parameters}.

    Raises:
        InputError: as in `read_state`, or a key of the backbone is missing or unknown.
        FileError: the file cannot be read.
    """
    return backbone_params(path, read_state(path))


def backbone_params(path: str | Path, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The backbone in a state dict from `read_state`; see `read_backbone`."""
    of_backbone = {key: value for key, value in state.items() if key.startswith('backbone.')}
    with unsupported.naming_model(path, state):
        return torch_weights.to_flax(of_backbone, names.BACKBONE[family_in(of_backbone)])


def write_state(path: str | Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes a published state dict of float32 arrays.

    Args:
        path: the file; with the suffix .safetensors it is written in that format, otherwise in the
            format of torch.save that the published code loads.
        state: published key -> array.

    Raises:
        FileError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix == '.safetensors':
        content = safetensors.numpy.save(dict(state), metadata={'format': 'pt'})
        with replacing(path) as part:
            part.write_bytes(content)
        return
    model, storages = torch_files.tensors(state)
    ordered = Global('collections', 'OrderedDict')
    versions = Call(ordered, (), items=module_versions(state))
    model = Call(ordered, (), items=model, state={'_metadata': versions})
    torch_files.write(path, {'model': model}, storages)


def module_versions(keys: Iterable[str]) -> dict[str, dict[str, int]]:
    """The `_metadata` of a PyTorch state dict: the version of every module on the path of a key."""
    versions = {}
    for key in keys:
        names = key.split('.')[:-1]
        for depth in range(len(names) + 1):
            module = '.'.join(names[:depth])
            frozen = names[0] == 'backbone' and names[depth - 1 : depth] == ['norm']
            version = VERSIONS.get(module, FROZEN_NORM_VERSION if frozen else 1)
            versions[module] = {'version': version}
    return versions


def _state_dict(top: Any) -> Any:
    for key in WRAPPERS:
        if isinstance(top, dict) and isinstance(top.get(key), dict):
            return top[key]
    return top


def _is_safetensors(path: str | Path) -> bool:
    """Whether the content of a file is in the .safetensors format: the header's size, then `{`.

    If the content is of no known format, the suffix decides.
    """
    with reading(path), open(path, 'rb') as file:
        begin = file.read(9)
        header = int.from_bytes(begin[:8], 'little')
        if begin[8:] == b'{' and header < os.fstat(file.fileno()).st_size:
            return True
    return Path(path).suffix == '.safetensors' and not begin.startswith((b'PK', b'\x80'))


def _read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise InputError(
            f'{path} is damaged or not a .safetensors file: {error}; download or copy it again.'
        ) from None
    except AttributeError as error:  # NumPy has no numbers of 8 bits.
        raise InputError(
            f'{path} has weights of a type that NumPy lacks ({error}); save them as float32.'
        ) from None
