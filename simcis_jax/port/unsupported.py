"""Identifies files and models that cannot be converted, for error messages that say what to do.

Files are identified by their first bytes, models by the names of their weights. This happens only
after reading or conversion has failed, so no usable file is ever rejected here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from simcis_jax.errors import InputError, naming, reading

DOWNLOAD = 'download the weights again'
UNPACK = 'unpack it and give the weights in it'

# (pattern of the first bytes, what the file is, what to do).
FILES = (
    (rb'\Z', 'an empty file', 'the download has failed: download it again'),
    (rb'version https://git-lfs', 'a Git LFS pointer, not the weights', 'run git lfs pull'),
    (rb'(\xef\xbb\xbf)?\s*<(!doctype html|html|head)', 'a web page, not the weights', DOWNLOAD),
    (rb'(\xef\xbb\xbf)?\s*<\?xml', 'XML, probably the error message of a server', DOWNLOAD),
    (rb'\s*[{[]', 'JSON text, not weights', DOWNLOAD),
    (rb'\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd|Rar!', 'a compressed archive', UNPACK),
    (rb'[\s\S]{257}ustar', 'a tar archive', UNPACK),
    (rb'\x89HDF', 'an HDF5 file, probably from Keras', 'give PyTorch weights'),
    (rb'\x93NUMPY', 'a single NumPy array', 'give a state dict'),
    (rb'GGUF', 'a GGUF file', 'give PyTorch weights'),
)  # fmt: skip

OURS = (
    'a model of the published code or Mask2Former, or ImageNet weights of a ResNet-50, ResNet-101 '
    'or Swin'
)
BACKBONE = 'only backbones ResNet-50, ResNet-101 and Swin can be used'


class Model(NamedTuple):
    """A kind of model that is recognized by the names of its weights."""

    name: str
    key: str  # Pattern that a key of the model matches.
    no_key: str | None  # Pattern that no key of the model matches.
    way_out: str


# The first match wins.
MODELS = (
    Model('a Mask2Former of Hugging Face', r'\b(pixel_level|transformer)_module\.', None,
          'give its folder, with config.json, as --checkpoint or training.init_from'),
    Model('Panoptic FPN, Mask R-CNN or a similar model of detectron2',
          r'\b(proposal_generator|roi_heads)\.|^backbone\.(bottom_up|fpn_)', None, f'give {OURS}'),
    Model('a model of MMDetection',
          r'^(backbone\.)?(panoptic_head|panoptic_fusion_head|bbox_head|rpn_head|roi_head)\.',
          None, f'give {OURS}'),
    Model('a model of MMSegmentation', r'^(backbone\.)?(decode_head|auxiliary_head)\.', None,
          f'give {OURS}'),
    Model('DETR', r'\bclass_labels_classifier\.|\btransformer\.decoder\.layers\.0\.multihead_attn',
          r'\bsem_seg_head\.', f'give {OURS}'),
    Model('a vision transformer', r'\b(blocks|layers?)\.\d+\.(attn\.qkv|attention\.attention)\.',
          r'\brelative_position_bias_table\b', BACKBONE),
    Model('ConvNeXt', r'\bdwconv\.|\bconv_dw\.', None, BACKBONE),
    Model('ResNet-18 or -34', r'\b(layer1|res2)\.0\.conv2\.',
          r'\b(layer1|res2)\.0\.conv3\.', BACKBONE),
    Model('a model inside DataParallel', r'^(backbone\.)?module\.', None,
          'save the state dict of model.module instead'),
    Model('a segmentation model with a ResNet of torchvision',
          r'^backbone\.(conv1|layer\d)\.', None, f'give {OURS}'),
)  # fmt: skip


def recognize(keys: Collection[str]) -> Model | None:
    """The first of `MODELS` that matches the keys of a state dict, if any."""

    def has(pattern):
        return any(re.search(pattern, key) for key in keys)

    for model in MODELS:
        if has(model.key) and not (model.no_key and has(model.no_key)):
            return model
    return None


@contextlib.contextmanager
def naming_file(path: str | Path) -> Iterator[None]:
    """Makes errors in its body, which reads a file, name the kind of the file, if known."""
    try:
        yield
    except InputError:
        with reading(path), open(path, 'rb') as file:
            begin = file.read(512)
        for pattern, what, way_out in FILES:
            if re.match(pattern, begin, re.IGNORECASE):
                raise InputError(f'{path} is {what}; {way_out}.') from None
        raise


@contextlib.contextmanager
def naming_model(path: str | Path, keys: Collection[str]) -> Iterator[None]:
    """Makes errors in its body, which converts a state dict, name the kind of model, if known."""
    try:
        with naming(path):
            yield
    except InputError:
        if model := recognize(keys):
            raise InputError(f'{path} holds {model.name}; {model.way_out}.') from None
        raise
