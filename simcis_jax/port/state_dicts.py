"""State dicts in files: .pth, .pkl and .safetensors."""

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

# Versions of the modules that load older state dicts otherwise: without these, the published code
# renames the keys of its pixel decoder and says nothing, and detectron2 changes the variances.
VERSIONS = {'sem_seg_head': 2, 'sem_seg_head.predictor': 2}
FROZEN_NORM_VERSION = 3
WRAPPERS = ('model', 'state_dict')  # Keys under which programs file the state dict.


def read_state(path: str | Path) -> dict[str, np.ndarray]:
    """Float32 arrays of a published model, or of an ImageNet backbone named as published.

    Args:
        path: a .safetensors, or anything `torch_files.read` reads; bare, or with optimizer and all.

    Raises:
        InputError: the file is broken, not safe, or holds something else.
        FileError: it cannot be read.
    """
    with foreign.naming_file(path):
        if _is_safetensors(path):
            state = _read_safetensors(path)
        else:
            state = torch_files.read(path, pick=_state_dict)
        arrays = isinstance(state, dict) and all(isinstance(key, str) for key in state)
        if not arrays or not all(isinstance(value, np.ndarray) for value in state.values()):
            raise InputError(f'{path} holds no state dict, names of weights with their arrays.')
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
    """Our parameters from what `read_state` has read, of the whole model or of the ResNet alone.

    Raises:
        InputError: a key is missing or unknown; known models of others are named.
    """
    with foreign.naming_model(path, state):
        if not backbone_only:
            return torch_weights.to_flax(state)
        state = {key: value for key, value in state.items() if key.startswith('backbone.')}
        return torch_weights.to_flax(state, torch_weights.BACKBONE)


def read_backbone(path: str | Path) -> dict[str, Any]:
    """Our parameters of the ResNet alone, from a whole published model or ImageNet weights.

    Raises:
        InputError: as `read_state`, or a key of the ResNet is missing or unknown.
        FileError: the file cannot be read.
    """
    return to_params(path, read_state(path), backbone_only=True)['resnet']


def write_state(path: str | Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes a published state dict of float32 arrays.

    Args:
        path: a .safetensors, or a file that the published code loads.
        state: key -> array.

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
    """What PyTorch keeps in `_metadata`: the version of every module that a key goes through."""
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
    """Whether a file begins as .safetensors do, whatever its name: the size of a header, and `{`.

    What begins in no known way is believed its name.
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
            f'{path} is broken, or of another kind than .safetensors: {error}; get it again.'
        ) from None
