"""Renames ImageNet weights of torchvision, timm and the original files to detectron2's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

# Substitutions; the published names are the results with the prefix `backbone.`.
RESNET = (
    (r'^(conv1|bn1)\b', r'stem.\1'),
    (r'^layer(\d)', lambda match: f'res{int(match[1]) + 1}'),
    (r'\bbn(\d)', r'conv\1.norm'),
    (r'downsample\.0', 'shortcut'),
    (r'downsample\.1', 'shortcut.norm'),
)
# torchvision numbers the patch embedding, the stages and the mergings between them in one list.
SWIN = (
    (r'^features\.0\.0\b', 'patch_embed.proj'),
    (r'^features\.0\.2\b', 'patch_embed.norm'),
    (r'^features\.([1357])\.(\d+)\b', lambda m: f'layers.{int(m[1]) // 2}.blocks.{m[2]}'),
    (r'^features\.([246])\b', lambda m: f'layers.{int(m[1]) // 2 - 1}.downsample'),
    (r'\bmlp\.0\b', 'mlp.fc1'),
    (r'\bmlp\.3\b', 'mlp.fc2'),
)
# Weights that only an ImageNet classifier needs.
CLASSIFIER = re.compile(r'(stem\.)?fc\.(weight|bias)|(norm|head(\.fc)?)\.(weight|bias)')


def imagenet_names(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames ImageNet weights of a ResNet or Swin transformer to published backbone keys.

    A Swin classifier has no norms of the four maps: they are added as they are initialised.
    """
    is_swin = any(key.endswith('relative_position_bias_table') for key in state)
    renamed = {}
    for key, value in state.items():
        if not CLASSIFIER.fullmatch(key):
            for pattern, replacement in SWIN if is_swin else RESNET:
                key = re.sub(pattern, replacement, key)
            renamed[f'backbone.{key}'] = value
    return _with_output_norms(_merged_after_stage(renamed)) if is_swin else renamed


def _merged_after_stage(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Counts a merging to the stage before it; newer versions of timm count it to the next one."""
    if not any(key.startswith('backbone.layers.3.downsample.') for key in state):
        return dict(state)
    pattern = re.compile(r'^(backbone\.layers\.)(\d)(\.downsample\.)')
    return {
        pattern.sub(lambda m: f'{m[1]}{int(m[2]) - 1}{m[3]}', key): value
        for key, value in state.items()
    }


def _with_output_norms(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    state = dict(state)
    for stage in range(4):
        norm = state.get(f'backbone.layers.{stage}.blocks.0.norm1.weight')
        if norm is not None and f'backbone.norm{stage}.weight' not in state:
            state[f'backbone.norm{stage}.weight'] = np.ones_like(norm)
            state[f'backbone.norm{stage}.bias'] = np.zeros_like(norm)
    return state
