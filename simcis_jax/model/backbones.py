"""The backbones by name. A backbone turns images into four maps, finest first.

The name of its family, 'resnet' or 'swin', is also the name of its parameters in a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from simcis_jax.errors import InputError
from simcis_jax.model.resnet import RESNETS, ResNet
from simcis_jax.model.swin import SWINS, Swin


class Backbone(NamedTuple):
    """A backbone of the registry."""

    family: str
    build: type[nn.Module]
    settings: dict[str, Any]


BACKBONES = {
    **{name: Backbone('resnet', ResNet, settings) for name, settings in RESNETS.items()},
    **{name: Backbone('swin', Swin, settings) for name, settings in SWINS.items()},
}
FAMILIES = tuple(dict.fromkeys(backbone.family for backbone in BACKBONES.values()))


def find_backbone(name: str) -> Backbone:
    """The backbone with this name.

    Raises:
        InputError: no backbone has this name.
    """
    if name not in BACKBONES:
        raise InputError(f'model.backbone={name!r} is unknown; one of {sorted(BACKBONES)}.')
    return BACKBONES[name]


def family_of(params: Mapping[str, Any]) -> str:
    """The family of the backbone in the parameters of a network."""
    (family,) = params.keys() & set(FAMILIES)
    return family


def coarsest_stride(name: str) -> int:
    """Pixels of an image per position of the coarsest map of a backbone."""
    return 8 * BACKBONES[name].settings.get('stem_stride', 4)


def make_backbone(name: str, **settings: Any) -> nn.Module:
    """The backbone with this name.

    Args:
        name: a key of `BACKBONES`.
        **settings: fields of its class, such as `dtype`; a ResNet has no `stochastic_depth`.

    Raises:
        InputError: no backbone has this name.
    """
    backbone = find_backbone(name)
    return backbone.build(**backbone.settings, **settings)
