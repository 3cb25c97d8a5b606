"""Converts between PyTorch weights and our parameters, by a table of names.

Both are NumPy arrays here, and neither PyTorch nor the model is needed. Import and export use the
same table, so exporting imported weights gives the same bits.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict

from simcis_jax.errors import InputError
from simcis_jax.port.names import DECODER, PUBLISHED, Layout

LISTED = 20  # Number of keys that an error message lists.


class _Array(NamedTuple):
    """An entry of the table: published keys that hold equal arrays, and the keys of our arrays."""

    published: list[str]
    ours: list[str]
    layout: str


def _arrays(keys: Collection[str], column: int, table: tuple) -> Iterator[_Array]:
    """Expands the table for a model.

    The numbers of blocks and layers are derived from the keys. All entries of a block or layer are
    listed even if only some of its keys are given, so that missing keys can be found.

    Args:
        keys: keys of the model.
        column: which column of the table the keys are named by; 0 = published, 1 = ours.
        table: the table.
    """

    def family(row):  # Rows of one kind of layer share this prefix.
        return row[1].split('{}')[0]

    counts = defaultdict(int)
    for row in table:
        if '{}' in row[1]:
            numbered = re.compile(re.escape(row[column]).replace(r'\{\}', r'(\d+)'))
            found = [int(match[1]) for match in map(numbered.match, keys) if match]
            # A complete model has more keys than blocks; this ignores absurd numbers.
            found = [i for i in found if i < len(keys)]
            counts[family(row)] = max([counts[family(row)], *(i + 1 for i in found)])
    for row in table:
        published, ours, parts = row
        for i in range(counts[family(row)] if '{}' in ours else 1):
            for their_name, our_names, layout in parts:
                key = f'{published.format(i)}.{their_name}'
                same = [key]
                if '._bbox_embed.' in key:  # Stored once more for every decoder layer.
                    layers = range(counts[DECODER.split('{}')[0]])
                    same += [key.replace('._bbox_embed.', f'.bbox_embed.{j}.') for j in layers]
                yield _Array(same, [f'{ours.format(i)}/{x}'.lstrip('/') for x in our_names], layout)


def _check_complete(
    expected: Collection[str], given: Collection[str], what: str, layout: Layout
) -> None:
    """Raises an InputError that lists missing and unknown names."""
    problems = []
    for problem, names in (
        ('are missing', set(expected) - set(given)),
        ('have no counterpart', set(given) - set(expected)),
    ):
        if names:
            few = sorted(names)[:LISTED]
            more = f' and {len(names) - LISTED} more' if len(names) > LISTED else ''
            problems.append(f'{len(names)} {what} {problem}: {", ".join(few)}{more}')
    if problems:
        raise InputError(f'{"; ".join(problems)}; only a complete {layout.model} can be converted.')


def to_flax(state: Mapping[str, np.ndarray], layout: Layout = PUBLISHED) -> dict[str, Any]:
    """Converts a published state dict to our nested parameters.

    Args:
        state: published key -> array.
        layout: the names of this kind of model.

    Raises:
        InputError: a key is missing or unknown, an array has the wrong number of axes, or the
            copies of the box head differ.
    """
    ignored = re.compile(layout.ignored)
    state = {key: value for key, value in state.items() if not ignored.fullmatch(key)}
    arrays = list(_arrays(state, 0, layout.table))
    expected = [key for x in arrays for key in x.published]
    _check_complete(expected, state, 'published keys', layout)
    params = {}
    for array in arrays:
        value, *copies = (np.asarray(state[key]) for key in array.published)
        for key, copy in zip(array.published[1:], copies, strict=True):
            if not np.array_equal(copy, value):
                raise InputError(
                    f'{key} differs from {array.published[0]}: all decoder layers share one box '
                    'head, so its copies must be equal; use the weights of an unmodified model.'
                )
        pieces = _split(array.published[0], value, array.layout, len(array.ours))
        params.update(zip(array.ours, map(np.ascontiguousarray, pieces), strict=True))
    return unflatten_dict(params, sep='/')


def _split(key: str, value: np.ndarray, layout: str, count: int) -> np.ndarray:
    axes = layout.split(' -> ')[0].replace('(n o)', 'o').replace('(n r)', 'r').split()
    if value.ndim != len(axes) or value.shape[0] % count:
        raise InputError(f'{key} has shape {value.shape}; it must have {len(axes)} axes.')
    return rearrange(value, layout, n=count)


def to_torch(params: Mapping[str, Any], layout: Layout = PUBLISHED) -> dict[str, np.ndarray]:
    """Converts our nested parameters to a state dict with the keys and shapes of a layout.

    Raises:
        InputError: a parameter is missing or has no counterpart in the layout.
    """
    params = flatten_dict(params, sep='/')
    arrays = list(_arrays(params, 1, layout.table))
    _check_complete([path for x in arrays for path in x.ours], params, 'parameters', layout)
    state = {}
    for array in arrays:
        split, merged = reversed(array.layout.split(' -> '))
        pieces = [np.asarray(params[path]) for path in array.ours]
        value = np.ascontiguousarray(rearrange(pieces, f'{split} -> {merged}'))
        state.update(dict.fromkeys(array.published, value))
    return state
