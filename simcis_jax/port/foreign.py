"""Names what a file or its keys are that conversion cannot use, and says the way out.

Files are told by how they begin, models by the names of their weights. The tables are only asked
when a file could not be used: nothing that can be converted is refused for its looks.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from simcis_jax.errors import InputError, reading

DOWNLOAD = 'download the weights themselves'
UNPACK = 'unpack it and give the weights in it'

# (how the file begins, what it is, the way out); a tar archive says it after 257 bytes.
FILES = (
    (rb'\Z', 'an empty file', 'the download has failed: download it again'),
    (rb'version https://git-lfs', 'a pointer of Git LFS, not the weights', 'run git lfs pull'),
    (rb'(\xef\xbb\xbf)?\s*<(!doctype html|html|head)', 'a web page, not the weights', DOWNLOAD),
    (rb'(\xef\xbb\xbf)?\s*<\?xml', 'XML, such as the error of a server', DOWNLOAD),
    (rb'\s*[{[]', 'JSON text, not weights', DOWNLOAD),
    (rb'\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd|Rar!', 'a compressed archive', UNPACK),
    (rb'[\s\S]{257}ustar', 'a tar archive', UNPACK),
    (rb'\x89HDF', 'an HDF5 file, as of Keras', 'give weights of PyTorch'),
    (rb'\x93NUMPY', 'a NumPy array', 'give a state dict, names of weights with their arrays'),
    (rb'GGUF', 'a GGUF file', 'give weights of PyTorch'),
)  # fmt: skip

OURS = 'a model of the published SimCIS code, or ImageNet weights of a ResNet-50 or -101'
BACKBONE = 'its ResNet alone can be used: --config.training.init_backbone=FILE'
RESNET = 'only ResNet-50 and -101 can be used'


class Model(NamedTuple):
    """A kind of model that some key gives away."""

    name: str
    key: str  # Pattern of a key that it has,
    no_key: str | None  # and of one that it has not.
    way_out: str


# The first that fits is named.
MODELS = (
    Model('Mask2Former of Hugging Face', r'\bpixel_level_module\.', None, f'give {OURS}'),
    Model('Panoptic FPN, Mask R-CNN or a relative of detectron2',
          r'\b(proposal_generator|roi_heads)\.|^backbone\.(bottom_up|fpn_)', None, f'give {OURS}'),
    Model('a model of MMDetection',
          r'^(backbone\.)?(panoptic_head|panoptic_fusion_head|bbox_head|rpn_head|roi_head)\.',
          None, f'give {OURS}'),
    Model('a model of MMSegmentation', r'^(backbone\.)?(decode_head|auxiliary_head)\.', None,
          f'give {OURS}'),
    Model('DETR', r'\bclass_labels_classifier\.|\btransformer\.decoder\.layers\.0\.multihead_attn',
          r'\bsem_seg_head\.', f'give {OURS}'),
    Model('a Swin transformer', r'\brelative_position_bias_table\b', None, RESNET),
    Model('a vision transformer', r'\b(blocks|layers?)\.\d+\.(attn\.qkv|attention\.attention)\.',
          None, RESNET),
    Model('ConvNeXt', r'\bdwconv\.|\bconv_dw\.', None, RESNET),
    Model('ResNet-18 or -34', r'\b(layer1|res2)\.0\.conv2\.',
          r'\b(layer1|res2)\.0\.conv3\.', RESNET),
    Model('a model inside DataParallel', r'^(backbone\.)?module\.', None,
          'save the state dict of model.module instead'),
    Model('a Mask2Former of detectron2 without query pre-alignment',
          r'^sem_seg_head\.predictor\.', r'\bpredictor\.enc_output\.', BACKBONE),
    Model('a segmentation model whose ResNet has the names of torchvision',
          r'^backbone\.(conv1|layer\d)\.', None, f'give {OURS}'),
)  # fmt: skip


def recognize(keys: Collection[str]) -> Model | None:
    """The kind of model that has these keys, if it is one of `MODELS`."""

    def has(pattern):
        return any(re.search(pattern, key) for key in keys)

    for model in MODELS:
        if has(model.key) and not (model.no_key and has(model.no_key)):
            return model
    return None


@contextlib.contextmanager
def naming_file(path: str | Path) -> Iterator[None]:
    """Around what reads a file: if that fails, the error says what the file is, where known."""
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
    """Around what uses a state dict: if that fails, the error says whose it is, where known."""
    try:
        yield
    except InputError as error:
        model = recognize(keys)
        if model:
            way_out = model.way_out.replace('FILE', str(path))
            raise InputError(f'{path} holds {model.name}; {way_out}.') from None
        raise InputError(f'{path}: {error}') from None
