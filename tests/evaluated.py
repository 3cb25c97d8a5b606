"""A small evaluation without training: coloured rectangles, and a network that segments by colour.

Run as a program, it prints the report as JSON; start it once per process:

    python tests/evaluated.py PROCESS_INDEX PROCESS_COUNT PORT
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.data.source import Example
from simcis_jax.evaluation.evaluator import Evaluator
from simcis_jax.runtime import parallel
from simcis_jax.settings.keys import EvaluationSettings
from simcis_jax.types import Categories, Predictions

CATEGORIES = Categories(
    names=('sky', 'grass', 'car', 'person', 'bus', 'unseen'),
    is_thing=(False, False, True, True, True, True),
    colors=(
        (90, 160, 240),
        (60, 200, 60),
        (240, 40, 40),
        (250, 220, 40),
        (160, 60, 200),
        (250, 190, 60),
    ),
)
GROUPS = {'base': (0, 1, 2), 'novel': (3, 4), 'past': (0, 1, 2), 'current': (3, 4)}
GROUPS['all'] = GROUPS['base'] + GROUPS['novel']
# All resized sides are odd, so that labels never tie halfway between two pixels.
SIZES = [(64, 96), (96, 64), (72, 72), (130, 195), (66, 99), (60, 60), (90, 144)]
SETTINGS = dict(
    batch_size=2,
    short_side=63,
    max_side=160,
    object_mask_threshold=0.3,
    overlap_threshold=0.6,
    num_pictures=3,
)


class Rectangles:
    """Noisy images of many sizes: sky over grass, and rectangles of the thing classes."""

    name = 'rectangles'
    categories = CATEGORIES

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        height, width = SIZES[index]
        rng = np.random.default_rng(index)
        segment_map = np.ones((height, width), np.int32)
        segment_map[height // 2 :] = 2
        labels = [0, 1, *rng.integers(2, 6, 4).tolist()]
        for segment in range(3, 7):
            top, left = rng.integers(0, (height - 20, width - 20))
            segment_map[top : top + rng.integers(12, 30), left : left + rng.integers(12, 30)] = (
                segment
            )
        present, positions = np.unique(segment_map, return_inverse=True)
        labels = np.array(labels, np.int32)[present - 1]
        colors = np.array(CATEGORIES.colors)[labels][positions.reshape(height, width)]
        image = np.clip(colors + rng.normal(0, 25, colors.shape), 0, 255).astype(np.uint8)
        segment_map = positions.reshape(height, width).astype(np.int32) + 1
        crowd = np.zeros(len(labels), bool)
        segment_map[:5, :9] = 0
        return Example(image, segment_map, labels, crowd, f'image_{index}')

    def classes_of(self, index):
        return frozenset(self[index].labels.tolist())

    def size_of(self, index):
        return SIZES[index]


class ColorNetwork:
    """Query q segments the pixels of colour q and predicts class q, but buses as cars."""

    head = masks = 'sigmoid'

    def __eq__(self, other):
        return type(other) is type(self)

    def __hash__(self):
        return 0

    def apply(self, variables, image, seen, *, size):
        del size
        colors = variables['params']['colors'] / 255  # [Q, 3]
        pixels = image.astype(jnp.float32) / 255
        batch, height, width, _ = pixels.shape
        pixels = pixels.reshape(batch, height // 4, 4, width // 4, 4, 3).mean(axis=(2, 4))
        # 40 (0.1 - |pixel - colour|^2), as a product.
        square = jnp.sum(pixels**2, axis=-1, keepdims=True)
        features = jnp.concatenate([pixels, square, jnp.ones_like(square)], axis=-1)
        bias = 0.1 - jnp.sum(colors**2, axis=1, keepdims=True)
        embeddings = 40 * jnp.concatenate([2 * colors, -jnp.ones_like(bias), bias], axis=1)
        num_queries = len(colors)
        labels = jnp.array([0, 1, 2, 3, 2, 5])
        surety = jnp.arange(3.0, 3.0 + num_queries)[:, None]
        logits = jnp.where(jnp.arange(num_queries) == labels[:, None], surety, -surety)
        return Predictions(
            class_logits=jnp.broadcast_to(logits, (1, batch, num_queries, num_queries)),
            mask_embeddings=jnp.broadcast_to(embeddings, (1, batch, *embeddings.shape)),
            boxes=None,
            virtual_class_logits=None,
            mask_features=features,
            selection=None,
        )


class DuplicateNetwork(ColorNetwork):
    """A colour network with every query twice, each with half the probability."""

    def apply(self, *args, **kwargs):
        single = super().apply(*args, **kwargs)
        half = jax.nn.sigmoid(single.class_logits) / 2
        return single.replace(
            class_logits=jnp.concatenate([jnp.log(half) - jnp.log1p(-half)] * 2, axis=2),
            mask_embeddings=jnp.concatenate([single.mask_embeddings] * 2, axis=2),
        )


def evaluate(
    mesh=None, mask_unseen=True, source=None, options=None, network=ColorNetwork, **changes
):
    """The report and the picture of an evaluation with changed settings.

    `options` are those of `Evaluator.evaluate`.
    """
    settings = EvaluationSettings(**(SETTINGS | changes))
    evaluator = Evaluator(network(), CATEGORIES, settings, mask_unseen=mask_unseen, mesh=mesh)
    everywhere = parallel.make_mesh(jax.device_count())
    params = {'colors': np.array(CATEGORIES.colors, np.float32)}
    params = parallel.put_replicated(everywhere, params)
    return evaluator.evaluate(params, source or Rectangles(), GROUPS, **(options or {}))


def assert_close(mine, other):
    """Two reports are equal but for the order in which floating-point numbers were added."""
    if isinstance(mine, dict):
        assert mine.keys() == other.keys()
        for key in mine:
            assert_close(mine[key], other[key])
    else:
        assert mine == (None if other is None else pytest.approx(other, rel=1e-12))


if __name__ == '__main__':
    index, count, port = map(int, sys.argv[1:])
    if count > 1:
        jax.distributed.initialize(f'localhost:{port}', count, index)
    report, picture = evaluate(tasks=('panoptic', 'semantic', 'instance'))
    print(json.dumps({'report': report, 'picture': int(picture.astype(int).sum())}))
