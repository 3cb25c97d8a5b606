"""Deterministic weights of the published network, and the arrays it computes from them.

The weights are too large to store, so every array is drawn from a generator seeded by its key. The
arrays in `golden/` were computed by the published PyTorch code with these weights.
"""

import re
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / 'golden'


def load(name: str) -> dict[str, np.ndarray]:
    """The arrays of one file; see `golden/README.md`."""
    with np.load(GOLDEN / f'{name}.npz') as file:
        return dict(file)


# Factors for 2-d weights by ending of the key; they damp branches so that queries stay distinct.
DAMPED = {'out_proj.weight': 0.25, 'output_proj.weight': 0.5, 'linear2.weight': 0.3}
MASK_BIAS = 2.5


def published_shapes(blocks_res4: int = 6) -> dict[str, tuple[int, ...]]:
    """Key -> shape of the published state dict: 6 blocks in res4 for ResNet-50, 23 for -101."""
    shapes = {}
    for line in (GOLDEN / 'state_dict_r50.tsv').read_text().splitlines()[1:]:
        key, shape = line.split('\t')
        shapes[key] = tuple(map(int, shape.split('x')))
    for block in range(6, blocks_res4):
        for key in [key for key in shapes if key.startswith('backbone.res4.5.')]:
            shapes[key.replace('.5.', f'.{block}.', 1)] = shapes[key]
    return shapes


def draw(key: str, shape: tuple[int, ...], salt: str) -> np.ndarray:
    """The float32 array of one key; another salt gives another network."""
    key = re.sub(r'\.bbox_embed\.\d+\.', '._bbox_embed.', key)  # One shared module.
    noise = np.random.default_rng(zlib.crc32((salt + key).encode())).standard_normal(shape)
    value = _shape_noise(key, noise)
    if key.endswith('mask_embed.layers.2.bias'):
        value[0] += MASK_BIAS
    if key.endswith('mask_features.bias'):
        value[0] -= MASK_BIAS
    return value.astype(np.float32)


def _shape_noise(key: str, noise: np.ndarray) -> np.ndarray:
    if noise.ndim == 4:
        centred = noise - noise.mean(axis=(1, 2, 3), keepdims=True)
        return centred * np.sqrt(2.0 / noise[0].size)
    if 'level_embed' in key:
        return 0.3 * noise
    if key.endswith('sampling_offsets.bias'):
        return _ring(noise.size)
    if key.endswith('class_embed.bias'):
        return -4.9 + 0.05 * noise
    if noise.ndim == 2:
        for ending, scale in {
            'sampling_offsets.weight': 0.02,
            'attention_weights.weight': 0.05,
            'class_embed.weight': 1.5 / 16,
        }.items():
            if key.endswith(ending):
                return scale * noise
        if key.endswith('_bbox_embed.layers.2.weight'):
            return 0.3 * noise / np.sqrt(noise.shape[1])
        value = noise / np.sqrt(noise.shape[1])
        for ending, scale in DAMPED.items():
            if key.endswith(ending):
                value = scale * value
        return value
    if key.endswith('running_mean'):
        return 0.1 * noise
    if key.endswith('running_var'):
        return 1.0 + 0.1 * np.abs(noise)
    if key.endswith('weight'):  # Scale of a norm.
        value = 1.0 + 0.1 * noise
        return 0.25 * value if key.endswith('conv3.norm.weight') else value
    return 0.05 * noise


def _ring(size: int, heads: int = 8, points: int = 4) -> np.ndarray:
    """Initial sampling offsets (head, level, point, xy) on squares around the query."""
    angle = np.arange(heads) * (2.0 * np.pi / heads)
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    direction = direction / np.abs(direction).max(axis=-1, keepdims=True)
    rings = direction[:, None, None, :] * np.arange(1.0, points + 1)[:, None]
    return np.broadcast_to(rings, (heads, size // (heads * points * 2), points, 2)).reshape(-1)


def published_state(salt: str, blocks_res4: int = 6) -> dict[str, np.ndarray]:
    """The state dict that the arrays in `golden/` were computed with."""
    return {key: draw(key, shape, salt) for key, shape in published_shapes(blocks_res4).items()}


def recorded_points(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The uniform points of one draw of the recorded training steps; shorter draws are prefixes."""
    rng = np.random.default_rng([20250, zlib.crc32(key.encode())])
    return rng.random(shape, dtype=np.float32)
