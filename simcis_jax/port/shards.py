"""Reads weights that are split into several files with an index, as transformers does."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from simcis_jax.errors import InputError, MissingFileError
from simcis_jax.port import state_dicts
from simcis_jax.runtime.json_files import read_json


def read_arrays(index: str | Path) -> dict[str, np.ndarray]:
    """Reads all arrays by their names in the files.

    Args:
        index: a file like model.safetensors.index.json. Its `weight_map` gives the name of the file
            of every array; the files, such as model-00001-of-00002.safetensors, are beside it.

    Raises:
        InputError: a file is damaged or unsafe, or holds other arrays than the index says.
        FileError: a file is missing or cannot be read.
    """
    index = Path(index)
    state = {}
    for name, listed in _files(index).items():
        path = index.parent / name
        if not path.is_file():
            raise MissingFileError(
                f'{path} does not exist, but {index.name} lists it; download it.'
            )
        arrays = state_dicts.read_arrays(path)
        for problem, keys in (
            ('does not hold', listed - arrays.keys()),
            ('also holds', arrays.keys() - listed),
        ):
            if keys:
                raise InputError(
                    f'{index} does not describe {name}, which {problem} {min(keys)}; download both '
                    'again from one repository.'
                )
        state |= arrays
    return state


def _files(index: Path) -> dict[str, set[str]]:
    """The names of the arrays in each file, as the index has them."""
    listed = read_json(index, dict).get('weight_map')
    if not isinstance(listed, dict) or not listed:
        raise InputError(f'{index} has no weight_map, which lists the weights; download it again.')
    files = {}
    for key, name in listed.items():
        if not isinstance(name, str) or Path(name).name != name or name in ('', '..'):
            raise InputError(
                f'{index}: the file of {key} is {name!r}, but it must be the name of a file in the '
                'same folder; download it again.'
            )
        files.setdefault(name, set()).add(key)
    return files
