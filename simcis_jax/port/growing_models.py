"""Published models in which the weights that a stage adds have names of their own.

There are two kinds of them. Names are those below `sem_seg_head.predictor`, i and j count from 0:

class rows  `class_embeds.i`, the rows of the class head that stage i + 1 adds. The last row of
            stage 1 is "no object".
prompts     `prompt_feat.i`, `prompt_embed.i.j` (positions in layer j; `prompt_embed.i` if all
            layers share them) and `prompt_mask_embed.i`, which stage i + 2 adds. Class heads are
            `class_embed.cls.0` for "no object" and `class_embed.cls.i` for stage i.

Here, one class head has the rows of all stages, with "no object" last; and prompts are stacked, as
`model.prompted_mask2former` says. Everything else is the original Mask2Former.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from simcis_jax.errors import InputError
from simcis_jax.model.backbones import family_of
from simcis_jax.port import names, state_dicts, torch_weights, unsupported
from simcis_jax.port.names import LINEAR, PREDICTOR, ROWS, Layout, mlp

CLASS_ROWS = f'{PREDICTOR}.class_embeds.'
CLASS_HEADS = f'{PREDICTOR}.class_embed.cls.'
PROMPTS = tuple(f'{PREDICTOR}.{x}.' for x in ('prompt_feat', 'prompt_embed', 'prompt_mask_embed'))
Params = Mapping[str, Any]


class GrowingModel(NamedTuple):
    """A model after one of its stages."""

    params: dict[str, Any]
    classes: tuple[int, ...]  # The number that every stage so far has added.


def is_growing(keys: Collection[str]) -> bool:
    """Whether a published model with these keys is of one of the two kinds."""
    return any(key.startswith((CLASS_ROWS, CLASS_HEADS, *PROMPTS)) for key in keys)


def has_prompts(params: Params) -> bool:
    """Whether parameters of our model are those of a network to which stages add prompts."""
    return 'no_object' in params['heads']


def read(path: str | Path, state: Mapping[str, np.ndarray]) -> GrowingModel:
    """Converts a state dict from `state_dicts.read_state`, for which `is_growing` is true.

    Args:
        path: the file of the state dict, for error messages.
        state: the state dict.

    Raises:
        InputError: a key is missing or unknown, the shapes do not fit together, or later stages
            add different numbers of classes or prompts.
    """
    family = state_dicts.family_in(state)
    if any(key.startswith(CLASS_ROWS) for key in state):
        number = _count([CLASS_ROWS], state)
        parts = state_dicts.to_params(path, state, _layout(family, _class_rows(number)))
        join = _join_rows
    else:
        number = max(_count([CLASS_HEADS], state) - 1, 1 + _count(PROMPTS, state))
        shared = any(re.match(rf'{re.escape(PROMPTS[1])}\d+\.weight', key) for key in state)
        layers = _count([names.FFN.split('{}')[0]], state)
        table = _prompts(number, 0 if shared else layers)
        parts = state_dicts.to_params(path, state, _layout(family, table))
        join = _join_prompts
    with unsupported.naming_model(path, state):
        return GrowingModel(*join(parts, number))


def write(params: Params, classes: Sequence[int]) -> dict[str, np.ndarray]:
    """Converts parameters of our model to a published state dict.

    Args:
        params: of a network with prompts, or else of the original Mask2Former.
        classes: the numbers of classes of the stages so far. Rows of further classes and prompts of
            further stages are left out.

    Raises:
        InputError: the parameters are of another network, or have other numbers of classes.
    """
    split = _split_prompts if has_prompts(params) else _split_rows
    parts, table = split(params, classes)
    return torch_weights.to_torch(parts, _layout(family_of(params), table))


def class_numbers(params: Params) -> tuple[int, ...]:
    """The number of classes of every stage of a network with prompts.

    They are those for which it has room: a run may have later stages with fewer.
    """
    first = params['heads']['class_head']['layer2']['dense']['bias'].shape
    if 'finished' not in params:
        return first
    number, width = params['finished']['class_head']['layer2']['dense']['bias'].shape
    return (*first, *[width] * number)


# Names


def _layout(family: str, table: tuple) -> Layout:
    rows = names.BACKBONES[family] + names.PIXEL_DECODER + names.LEARNED_QUERIES
    table = rows + names.MASKED_DECODER + table
    return Layout('Mask2Former with the weights of every stage', table, names.BUFFERS)


def _count(beginnings: Sequence[str], keys: Collection[str]) -> int:
    """One more than the largest number with which names continue; absurd ones are ignored."""
    pattern = re.compile(rf'(?:{"|".join(map(re.escape, beginnings))})(\d{{1,9}})\.')
    numbers = (int(match[1]) for match in map(pattern.match, keys) if match)
    return max((i + 1 for i in numbers if i < len(keys)), default=0)


def _class_rows(number: int) -> tuple:
    return tuple((f'{CLASS_ROWS}{i}', f'heads/class_rows/{i}', LINEAR) for i in range(number))


def _prompts(number: int, layers: int) -> tuple:
    """The table of class heads and prompts of some stages; 0 layers = they share positions."""
    features, positions, mask_head = PROMPTS
    table = [
        *mlp(f'{CLASS_HEADS}0', 'heads/no_object'),
        *mlp(f'{CLASS_HEADS}1', 'heads/class_head'),
    ]
    for i in range(number - 1):
        ours = f'later/{i}'
        table.append((f'{features}{i}', f'{ours}/prompts', (('weight', ['features'], ROWS),)))
        for j in range(layers or 1):
            name = f'{positions}{i}.{j}' if layers else f'{positions}{i}'
            table.append((name, f'{ours}/prompts', (('weight', [f'positions{j}'], ROWS),)))
        table += mlp(f'{mask_head}{i}', f'{ours}/mask_head')
        table += mlp(f'{CLASS_HEADS}{i + 2}', f'{ours}/class_head')
    return tuple(table)


# Class rows


def _join_rows(parts: Params, number: int) -> tuple[dict[str, Any], tuple[int, ...]]:
    heads = dict(parts['heads'])
    rows = heads.pop('class_rows')
    rows = [rows[str(i)] for i in range(number)]
    width = len(rows[0]['kernel'])
    for i, row in enumerate(rows):
        found = row['kernel'].shape, row['bias'].shape
        size = row['bias'].size
        if found != ((width, size), (size,)) or size <= (i == 0):
            raise InputError(
                f'{CLASS_ROWS}{i} has a weight {found[0][::-1]} and a bias {found[1]}, which do '
                f'not fit a class head of width {width}; the file is damaged.'
            )
    first, *later = rows
    no_object = first['bias'].size - 1  # Its place.
    heads['class_head'] = {
        'dense': {
            kind: np.concatenate(
                [
                    first[kind][..., :no_object],
                    *(row[kind] for row in later),
                    first[kind][..., no_object:],
                ],
                axis=-1,
            )
            for kind in ('kernel', 'bias')
        }
    }
    return {**parts, 'heads': heads}, (no_object, *(row['bias'].size for row in later))


def _split_rows(params: Params, classes: Sequence[int]) -> tuple[dict[str, Any], tuple]:
    heads = dict(params['heads'])
    rows = heads.pop('class_head')['dense']
    room = rows['bias'].size - 1
    if min(classes) < 1 or sum(classes) > room:
        raise InputError(
            f'stages of {_words(classes)} classes do not fit a class head of {room} classes.'
        )
    ends = np.cumsum(classes)
    heads['class_rows'] = {
        str(i): {kind: x[..., end - size : end] for kind, x in rows.items()}
        for i, (size, end) in enumerate(zip(classes, ends, strict=True))
    }
    heads['class_rows']['0'] = {
        kind: np.concatenate([x[..., : ends[0]], x[..., -1:]], axis=-1) for kind, x in rows.items()
    }
    return {**params, 'heads': heads}, _class_rows(len(classes))


# Prompts


def _join_prompts(parts: Params, number: int) -> tuple[dict[str, Any], tuple[int, ...]]:
    params = dict(parts)
    later = params.pop('later', {})
    stages = [_with_stacked_positions(later[str(i)], i) for i in range(number - 1)]
    if stages:
        params['newest'] = stages[-1]
        flat = [flatten_dict(stage, sep='/') for stage in stages]
        stacks = {
            path: _stack({f'{path} of stage {i + 2}': x[path] for i, x in enumerate(flat)})
            for path in flat[0]
        }
        for stack in stacks.values():
            stack[-1] = 0  # That of the newest stage, which is not read.
        params['finished'] = unflatten_dict(stacks, sep='/')
    return params, class_numbers(params)


def _with_stacked_positions(stage: Params, index: int) -> dict[str, Any]:
    features, *positions = _layers(stage['prompts'])
    arrays = {f'{PROMPTS[0]}{index}.weight': features}
    arrays |= {f'{PROMPTS[1]}{index}, layer {j}': x for j, x in enumerate(positions)}
    return {**stage, 'prompts': {'features': features, 'positions': _stack(arrays)[1:]}}


def _layers(prompts: Params) -> Iterator[np.ndarray]:
    """Features, and the positions of one layer after the other."""
    yield prompts['features']
    for j in range(len(prompts) - 1):
        yield prompts[f'positions{j}']


def _stack(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Stacks arrays, which have names for the error message, along a new first axis."""
    (name, first), *others = arrays.items()
    for other, x in others:
        if x.shape != first.shape:
            raise InputError(
                f'{name} has shape {first.shape}, but {other} has {x.shape}; only models in which '
                'every later stage adds the same numbers of classes and prompts can be converted.'
            )
    return np.stack([*arrays.values()])


def _split_prompts(params: Params, classes: Sequence[int]) -> tuple[dict[str, Any], tuple]:
    room = class_numbers(params)
    fits = len(classes) <= len(room) and classes[0] == room[0]
    if not fits or any(not 1 <= n <= most for n, most in zip(classes, room, strict=False)):
        raise InputError(
            f'stages of {_words(classes)} classes do not fit a network with prompts for stages of '
            f'{_words(room)}.'
        )
    parts = dict(params)
    newest, finished = parts.pop('newest', None), parts.pop('finished', None)
    later = {}
    for i, size in enumerate(classes[1:]):
        is_newest = i == len(classes) - 2
        stage = newest if is_newest else jax.tree.map(lambda stack, i=i: stack[i], finished)
        last = {kind: x[..., :size] for kind, x in stage['class_head']['layer2']['dense'].items()}
        positions = stage['prompts']['positions']
        later[str(i)] = {
            'prompts': {'features': stage['prompts']['features']}
            | {f'positions{j}': x for j, x in enumerate(positions)},
            'mask_head': stage['mask_head'],
            'class_head': {**stage['class_head'], 'layer2': {'dense': last}},
        }
    layers = 0
    if later:
        parts['later'] = later
        # A network of one layer reads the same of both; its names are those of a layer.
        decoder_layers = sum(name.startswith('layers_') for name in params['decoder'])
        layers = len(positions) if len(positions) == decoder_layers else 0
    return parts, _prompts(len(classes), layers)


def _words(numbers: Sequence[int]) -> str:
    return ', '.join(map(str, numbers))
