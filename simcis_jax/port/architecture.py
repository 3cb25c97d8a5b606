"""Derives the settings of a network from the shapes of its parameters."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from simcis_jax.errors import InputError
from simcis_jax.model.backbones import BACKBONES, family_of
from simcis_jax.model.mask2former import Mask2Former

# The fields that make the original Mask2Former.
PLAIN = dict(head='softmax', boxes=False, queries='learned', attention_order='cross_first')
OFFSETS_PER_HEAD = 3 * 4 * 2  # Maps, points and coordinates of deformable attention.


def backbone_name(params: Mapping[str, Any]) -> str:
    """The name of the backbone of a network with these parameters.

    Raises:
        InputError: it is none of the registry.
    """
    family = family_of(params)
    if family == 'resnet':
        blocks = tuple(_count(rf'res{stage}_(\d+)', params['resnet']) for stage in range(2, 6))
        found, words = dict(blocks=blocks), f'a ResNet with {blocks} blocks in its stages'
    else:
        found = swin_settings(params['swin'])
        words = 'a Swin with ' + ', '.join(f'{name} {value}' for name, value in found.items())
    for name, backbone in BACKBONES.items():
        if backbone.family == family:
            fields = backbone.build(**backbone.settings)
            if all(getattr(fields, key) == value for key, value in found.items()):
                return name
    known = ', '.join(name for name, x in BACKBONES.items() if x.family == family)
    raise InputError(f'{words} is none of the backbones {known}.')


def swin_settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """Width, depths, heads and window of a Swin transformer."""
    blocks = [params[f'stage{stage}_0']['attention'] for stage in range(1, 5)]
    tables = [block['relative_position_bias'] for block in blocks]
    return dict(
        width=params['patch_embedding']['kernel'].shape[-1],
        depths=tuple(_count(rf'stage{stage}_(\d+)', params) for stage in range(1, 5)),
        num_heads=tuple(table.shape[1] for table in tables),
        window=(int(np.sqrt(tables[0].shape[0])) + 1) // 2,
    )


def _count(pattern: str, names: Collection[str]) -> int:
    return sum(bool(re.fullmatch(pattern, name)) for name in names)


def count_classes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The number of classes of a published network.

    Args:
        shapes: of its parameters, by dotted names.
    """
    if 'heads.no_object.layer2.dense.bias' in shapes:  # It has a class head for every stage.
        (first,) = shapes['heads.class_head.layer2.dense.bias']
        number, width = shapes.get('finished.class_head.layer2.dense.bias', (0, 0))
        return first + number * width
    (rows,) = shapes['heads.class_head.dense.bias']
    return rows - ('learned_queries.positions' in shapes)  # With these, one is "no object".


def plain_settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """The number of classes and the settings of the original Mask2Former with these parameters.

    Raises:
        InputError: the backbone is unknown, or the arrays are of another network or do not fit
            together.
    """
    flat = {path: np.shape(x) for path, x in flatten_dict(params, sep='/').items()}

    def shape(path: str) -> tuple[int, ...]:
        if path not in flat:
            raise InputError(f'{path} is missing, so it is not the original Mask2Former.')
        return flat[path]

    num_queries, hidden_dim = shape('learned_queries/features')
    encoder_layers = _count(r'layer\d+', params['pixel_decoder'])
    decoder_layers = _count(r'layers_\d+', params['decoder'])
    if not encoder_layers or not decoder_layers:
        raise InputError('the model has no encoder or no decoder layers.')
    settings = dict(
        num_classes=shape('heads/class_head/dense/bias')[0] - 1,
        backbone=backbone_name(params),
        num_queries=num_queries,
        hidden_dim=hidden_dim,
        num_heads=shape('pixel_decoder/layer0/attention/offsets/bias')[0] // OFFSETS_PER_HEAD,
        encoder_layers=encoder_layers,
        encoder_feedforward=shape('pixel_decoder/layer0/feedforward/linear1/bias')[0],
        decoder_layers=decoder_layers,
        decoder_feedforward=shape('decoder/layers_0/feedforward/linear1/bias')[0],
        **PLAIN,
    )
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    expected = jax.eval_shape(Mask2Former(**settings).init, jax.random.key(0), image)['params']
    for path, x in flatten_dict(expected, sep='/').items():
        if flat.get(path) != x.shape:
            raise InputError(
                f'{path} has shape {flat.get(path)}, but {x.shape} fits the other weights; the '
                'file is damaged or of a changed network.'
            )
    return settings
