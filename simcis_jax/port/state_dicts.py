"""Reads and writes state dicts as .pth, .pkl and .safetensors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from simcis_jax.errors import InputError, reading
from simcis_jax.port import foreign, torch_files, torch_weights
from simcis_jax.port.pickles import Call, Global
from simcis_jax.runtime.files import replacing

# Module versions for `_metadata`. Without them, the published code silently renames keys of its
# pixel decoder, and detectron2 changes the variances of frozen batch norm.
VERSIONS = {'sem_seg_head': 2, 'sem_seg_head.predictor': 2}
FROZEN_NORM_VERSION = 3
WRAPPERS = ('model', 'state_dict')  # Keys of a checkpoint that may hold the state dict.


def read_state(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the weights of a published model or of an ImageNet backbone.

    Args:
        path: a .safetensors file, or a file that `torch_files.read` takes; either a state dict or a
            whole checkpoint with optimizer state.

    Returns:
        published key -> float32 array; ImageNet backbones are renamed to the published keys.

    Raises:
        InputError: the file is damaged or unsafe, or holds no state dict.
        FileError: it cannot be read.
    """
    with foreign.naming_file(path):
        if _is_safetensors(path):
            state = _read_safetensors(path)
        else:
            state = torch_files.read(path, pick=_state_dict)
        arrays = isinstance(state, dict) and all(isinstance(key, str) for key in state)
        if not arrays or not all(isinstance(value, np.ndarray) for value in state.values()):
            raise InputError(f'{path} holds no state dict that maps names of weights to arrays.')
    if not any(key.startswith(('sem_seg_head.', 'backbone.')) for key in state):
        state = torch_weights.imagenet_names(state)
    with foreign.naming_model(path, state):
        wrong = [key for key, x in state.items() if x.dtype not in (np.float32, np.float16)]
        if wrong:
            raise InputError(f'{wrong[0]} is {state[wrong[0]].dtype}, but weights are float32.')
    return {key: value.astype(np.float32, copy=False) for key, value in state.items()}


def to_params(
    path: str | Path, state: Mapping[str, np.ndarray], *, backbone_only: bool = False
) -> dict[str, Any]:
    """Converts the state dict from `read_state` to parameters of our model.

    Args:
        path: the file of the state dict, for error messages.
        state: the state dict.
        backbone_only: whether to convert only the ResNet.

    Raises:
        InputError: a key is missing or unknown; the message names the kind of model, if known.
    """
    with foreign.naming_model(path, state):
        if not backbone_only:
            return torch_weights.to_flax(state)
        state = {key: value for key, value in state.items() if key.startswith('backbone.')}
        return torch_weights.to_flax(state, torch_weights.BACKBONE)


def read_backbone(path: str | Path) -> dict[str, Any]:
    """Reads the parameters of the ResNet from a published model or from ImageNet weights.

    Raises:
        InputError: as in `read_state`, or a key of the ResNet is missing or unknown.
        FileError: the file cannot be read.
    """
    return to_params(path, read_state(path), backbone_only=True)['resnet']


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
