"""Deterministic weights and inputs of the original Mask2Former, by their names in transformers.

`golden/record_mask2former.py` records what transformers computes with them; the tests compute the
same without it. See `golden/README.md`.
"""

import dataclasses
import gzip
import zlib

import numpy as np
from golden_weights import GOLDEN

NUM_CLASSES, NUM_QUERIES, NUM_LAYERS, NUM_POINTS = 7, 10, 3, 112
# Of the config group `model`; the backbone differs.
SMALL = dict(
    num_queries=NUM_QUERIES,
    hidden_dim=64,
    num_heads=4,
    encoder_layers=2,
    encoder_feedforward=96,
    decoder_layers=NUM_LAYERS,
    decoder_feedforward=128,
)
MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])


@dataclasses.dataclass(frozen=True)
class Case:
    """One recorded network: backbone, batch size, and image size before padding to 32."""

    backbone: str
    batch: int
    size: tuple[int, int]


CASES = {
    'swin_small': Case('swin_small', 3, (93, 61)),
    'swin_t': Case('swin_t', 1, (50, 90)),
    'resnet50': Case('resnet50', 2, (61, 93)),
}
# Labels of the targets of each image; the masks are bands of these many rows and columns.
TARGETS = (((1, 3, 3), 'rows'), ((6, 0), 'columns'), ((), 'rows'))


def rng_of(key):
    """A random generator seeded by a text."""
    return np.random.default_rng([2024, zlib.crc32(key.encode())])


def draw(key, shape):
    """The float32 weights with a name of transformers."""
    noise = rng_of(key).standard_normal(shape)
    if key.endswith('num_batches_tracked'):
        return np.zeros(shape, np.int64)
    if key == 'criterion.empty_weight':
        return np.append(np.ones(shape[0] - 1), 0.1).astype(np.float32)
    if key.endswith('running_var'):
        noise = 1 + 0.1 * np.abs(noise)
    elif key.endswith('running_mean'):
        noise = 0.1 * noise
    elif 'sampling_offsets' in key:
        noise = (2.0 if key.endswith('bias') else 0.02) * noise
    elif len(shape) == 4:
        noise = (noise - noise.mean(axis=(1, 2, 3), keepdims=True)) * (2 / noise[0].size) ** 0.5
    elif key.endswith('relative_position_bias_table'):
        noise = 0.5 * noise
    elif 'queries_' not in key and len(shape) == 2:
        noise = (3 if 'class_predictor' in key else 1) * noise / shape[1] ** 0.5
    elif len(shape) == 1 and key.endswith('weight'):
        noise = (0.25 if key.endswith('layer.2.normalization.weight') else 1) * (1 + 0.1 * noise)
    elif len(shape) == 1:
        noise = 0.05 * noise
    return noise.astype(np.float32)


def file_names(case):
    """Name -> shape of the arrays that transformers writes for a case."""
    shapes = {}
    for line in gzip.open(GOLDEN / 'mask2former_names.tsv.gz', 'rt'):
        owner, name, shape = line.rstrip('\n').split('\t')
        if owner == case:
            shapes[name] = tuple(map(int, shape.split('x'))) if shape else ()
    return shapes


def file_arrays(case):
    """Name -> array of the file of a case."""
    return {name: draw(name, shape) for name, shape in file_names(case).items()}


def images(case):
    """uint8 [B, h, w, 3] with large blobs, before padding."""
    height, width = case.size
    coarse = rng_of(f'image {case.backbone}').uniform(0, 256, (case.batch, 5, 5, 3))
    rows, columns = (np.arange(n) * 5 // n for n in (height, width))
    return coarse[:, rows][:, :, columns].astype(np.uint8)


def padded_size(case):
    """Height and width of the input of the network."""
    return tuple(-(-side // 32) * 32 for side in case.size)


def targets(case):
    """Segment maps uint8 [B, H, W] of the padded images, and the labels of the segments."""
    height, width = padded_size(case)
    maps = np.zeros((case.batch, height, width), np.uint8)
    for image, (labels, along) in enumerate(TARGETS[: case.batch]):
        side = height if along == 'rows' else width
        bands = np.arange(side) * (len(labels) + 1) // side  # The last band is void.
        bands = np.where(bands < len(labels), bands + 1, 0)
        maps[image] = bands[:, None] if along == 'rows' else bands[None]
    return maps, [np.array(labels, np.int64) for labels, _ in TARGETS[: case.batch]]


def points(key, shape):
    """Uniform points of one draw."""
    return rng_of(f'points {key}').random(shape, dtype=np.float32)


def thinned(name, array):
    """The part of an array that is recorded: at most about 3000 evenly spaced numbers."""
    flat = np.asarray(array).reshape(-1)
    return flat[:: max(1, flat.size // 3000) | 1]
