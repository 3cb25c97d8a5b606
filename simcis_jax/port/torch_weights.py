"""Converts between the published PyTorch weights and our parameters, by a table of names.

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

# Layouts, published -> ours. Along the axis n, one published array is split into several of ours:
# the query, key and value projections of an attention layer. Elsewhere n is 1.
VECTOR = '(n o) -> n o'
MATRIX = '(n o) i -> n i o'
FILTER = '(n o) i h w -> n h w i o'
LEVELS = '(n l) d -> n l d'

# The weights of a module: (published name, our names, layout).
NORM = (('weight', ['scale'], VECTOR), ('bias', ['bias'], VECTOR))
LINEAR = (('weight', ['kernel'], MATRIX), ('bias', ['bias'], VECTOR))
CONV = (('weight', ['kernel'], FILTER),)
CONV_BIAS = (*CONV, ('bias', ['bias'], VECTOR))
CONV_FROZEN_NORM = (
    ('weight', ['conv/kernel'], FILTER),
    ('norm.weight', ['norm/frozen_scale'], VECTOR),
    ('norm.bias', ['norm/frozen_bias'], VECTOR),
    ('norm.running_mean', ['norm/frozen_mean'], VECTOR),
    ('norm.running_var', ['norm/frozen_variance'], VECTOR),
)
ATTENTION = (
    ('in_proj_weight', ['query/kernel', 'key/kernel', 'value/kernel'], MATRIX),
    ('in_proj_bias', ['query/bias', 'key/bias', 'value/bias'], VECTOR),
    ('out_proj.weight', ['output/kernel'], MATRIX),
    ('out_proj.bias', ['output/bias'], VECTOR),
)

STAGES = (2, 3, 4, 5)
LISTED = 20  # Number of keys that an error message lists.
PIXELS = 'sem_seg_head.pixel_decoder'
ENCODER = f'{PIXELS}.transformer.encoder.layers.{{}}'
PREDICTOR = 'sem_seg_head.predictor'
SELF = f'{PREDICTOR}.transformer_self_attention_layers.{{}}'
CROSS = f'{PREDICTOR}.transformer_cross_attention_layers.{{}}'
FFN = f'{PREDICTOR}.transformer_ffn_layers.{{}}'
DECODER = 'decoder/layers_{}'

# (published module, our module, its weights); {} is the number of a block or layer, from 0.
TABLE = (
    ('backbone.stem.conv1', 'resnet/stem', CONV_FROZEN_NORM),
    *(
        (f'backbone.res{s}.0.shortcut', f'resnet/res{s}_0/shortcut', CONV_FROZEN_NORM)
        for s in STAGES
    ),
    *(
        (f'backbone.res{s}.{{}}.conv{k}', f'resnet/res{s}_{{}}/conv{k}', CONV_FROZEN_NORM)
        for s in STAGES
        for k in (1, 2, 3)
    ),
    *((f'{PIXELS}.input_proj.{k}.0', f'pixel_decoder/input{k}', CONV_BIAS) for k in range(3)),
    *((f'{PIXELS}.input_proj.{k}.1', f'pixel_decoder/input_norm{k}', NORM) for k in range(3)),
    (f'{PIXELS}.transformer', 'pixel_decoder', (('level_embed', ['level_embed'], LEVELS),)),
    (f'{ENCODER}.self_attn.sampling_offsets', 'pixel_decoder/layer{}/attention/offsets', LINEAR),
    (f'{ENCODER}.self_attn.attention_weights', 'pixel_decoder/layer{}/attention/weights', LINEAR),
    (f'{ENCODER}.self_attn.value_proj', 'pixel_decoder/layer{}/attention/value', LINEAR),
    (f'{ENCODER}.self_attn.output_proj', 'pixel_decoder/layer{}/attention/output', LINEAR),
    (f'{ENCODER}.norm1', 'pixel_decoder/layer{}/attention_norm', NORM),
    (f'{ENCODER}.linear1', 'pixel_decoder/layer{}/feedforward/linear1', LINEAR),
    (f'{ENCODER}.linear2', 'pixel_decoder/layer{}/feedforward/linear2', LINEAR),
    (f'{ENCODER}.norm2', 'pixel_decoder/layer{}/feedforward/norm', NORM),
    (f'{PIXELS}.adapter_1', 'pixel_decoder/lateral', CONV),
    (f'{PIXELS}.adapter_1.norm', 'pixel_decoder/lateral_norm', NORM),
    (f'{PIXELS}.layer_1', 'pixel_decoder/output', CONV),
    (f'{PIXELS}.layer_1.norm', 'pixel_decoder/output_norm', NORM),
    (f'{PIXELS}.mask_features', 'pixel_decoder/mask_features', CONV_BIAS),
    (PREDICTOR, '', (('level_embed.weight', ['level_embedding'], LEVELS),)),
    (f'{PREDICTOR}.enc_output', 'query_prealignment/output/dense', LINEAR),
    (f'{PREDICTOR}.encoder_norm', 'query_prealignment/norm', NORM),
    (f'{PREDICTOR}.ref_point_head.layers.0', 'decoder/position_head/layer0/dense', LINEAR),
    (f'{PREDICTOR}.ref_point_head.layers.1', 'decoder/position_head/layer1/dense', LINEAR),
    (f'{PREDICTOR}.query_scale.layers.0', 'decoder/position_scale/layer0/dense', LINEAR),
    (f'{PREDICTOR}.query_scale.layers.1', 'decoder/position_scale/layer1/dense', LINEAR),
    (f'{SELF}.self_attn', f'{DECODER}/self_attention', ATTENTION),
    (f'{SELF}.norm', f'{DECODER}/self_attention/norm', NORM),
    (f'{CROSS}.multihead_attn', f'{DECODER}/cross_attention', ATTENTION),
    (f'{CROSS}.norm', f'{DECODER}/cross_attention/norm', NORM),
    (f'{FFN}.linear1', f'{DECODER}/feedforward/linear1', LINEAR),
    (f'{FFN}.linear2', f'{DECODER}/feedforward/linear2', LINEAR),
    (f'{FFN}.norm', f'{DECODER}/feedforward/norm', NORM),
    (f'{PREDICTOR}.decoder_norm', 'heads/norm', NORM),
    (f'{PREDICTOR}.class_embed', 'heads/class_head/dense', LINEAR),
    *(
        (f'{PREDICTOR}.mask_embed.layers.{k}', f'heads/mask_head/layer{k}/dense', LINEAR)
        for k in range(3)
    ),
    (f'{PREDICTOR}._bbox_embed.layers.0', 'heads/box_head/layer0/dense', LINEAR),
    (f'{PREDICTOR}._bbox_embed.layers.1', 'heads/box_head/layer1/dense', LINEAR),
    (f'{PREDICTOR}._bbox_embed.layers.2', 'heads/box_head/layer2', LINEAR),
)


BACKBONE = tuple(row for row in TABLE if row[0].startswith('backbone.'))

# These substitutions turn the names of torchvision and timm into those of detectron2; the published
# names are these with the prefix `backbone.`.
IMAGENET = (
    (r'^(conv1|bn1)\b', r'stem.\1'),
    (r'^layer(\d)', lambda match: f'res{int(match[1]) + 1}'),
    (r'\bbn(\d)', r'conv\1.norm'),
    (r'downsample\.0', 'shortcut'),
    (r'downsample\.1', 'shortcut.norm'),
)
# Weights that only an ImageNet classifier needs.
CLASSIFIER = re.compile(r'(stem\.)?fc\.(weight|bias)|.*\.num_batches_tracked')


class _Array(NamedTuple):
    """An entry of the table: published keys that hold equal arrays, and the keys of our arrays."""

    published: list[str]
    ours: list[str]
    layout: str


def _arrays(keys: Collection[str], column: int, table: tuple = TABLE) -> Iterator[_Array]:
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


def _check_complete(expected: Collection[str], given: Collection[str], what: str) -> None:
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
        raise InputError(
            f'{"; ".join(problems)}; only a complete published model with ResNet-50 or -101 can '
            'be converted.'
        )


def imagenet_names(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames ImageNet weights of torchvision, timm or detectron2 to published backbone keys."""
    renamed = {}
    for key, value in state.items():
        if not CLASSIFIER.fullmatch(key):
            for pattern, replacement in IMAGENET:
                key = re.sub(pattern, replacement, key)
            renamed[f'backbone.{key}'] = value
    return renamed


def to_flax(state: Mapping[str, np.ndarray], table: tuple = TABLE) -> dict[str, Any]:
    """Converts a published state dict to our nested parameters.

    Args:
        state: published key -> array.
        table: `TABLE`, or `BACKBONE` for a state dict of the backbone only.

    Raises:
        InputError: a key is missing or unknown, an array has the wrong number of axes, or the
            copies of the box head differ.
    """
    arrays = list(_arrays(state, 0, table))
    _check_complete([key for x in arrays for key in x.published], state, 'published keys')
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
    axes = layout.split(' -> ')[0].replace('(n o)', 'o').replace('(n l)', 'l').split()
    if value.ndim != len(axes) or value.shape[0] % count:
        raise InputError(f'{key} has shape {value.shape}; it must have {len(axes)} axes.')
    return rearrange(value, layout, n=count)


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts our nested parameters to a state dict with published keys and shapes.

    Raises:
        InputError: a parameter is missing or has no counterpart in the published code.
    """
    params = flatten_dict(params, sep='/')
    arrays = list(_arrays(params, column=1))
    _check_complete([path for x in arrays for path in x.ours], params, 'parameters')
    state = {}
    for array in arrays:
        split, merged = reversed(array.layout.split(' -> '))
        pieces = [np.asarray(params[path]) for path in array.ours]
        value = np.ascontiguousarray(rearrange(pieces, f'{split} -> {merged}'))
        state.update(dict.fromkeys(array.published, value))
    return state
