"""Run-length encodings, byte for byte those of pycocotools."""

import jax
import numpy as np
import pytest
from pycocotools import mask as coco

from simcis_jax.evaluation.mask_runs import encode_edges, encode_segments, packed_edges


def encoded(masks):
    return [coco.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]


def random_masks(rng, number, shape):
    """Blobs of any size: smooth noise above thresholds that make some masks empty and some full."""
    noise = rng.normal(size=(number, *shape)).cumsum(axis=1).cumsum(axis=2)
    thresholds = np.quantile(noise, rng.uniform(-0.2, 1.2, number).clip(0, 1), axis=(1, 2))
    return noise > thresholds.diagonal()[:, None, None]


@pytest.mark.parametrize('shape', [(1, 1), (7, 5), (8, 16), (40, 33), (64, 64)])
@pytest.mark.parametrize('margin', [(0, 0), (3, 0), (5, 9)])
def test_edges_encode_as_the_masks(shape, margin):
    rng = np.random.default_rng(shape[0])
    masks = random_masks(rng, 20, shape)
    masks[0], masks[1], masks[2] = False, True, rng.random(shape) < 0.5
    masks[3] = False
    masks[3, [0, -1]] = True  # Runs that go on in the next column.
    canvas = np.pad(masks, ((0, 0), (0, margin[0]), (0, margin[1])))
    edges = jax.device_get(jax.jit(packed_edges)(canvas))
    assert encode_edges(edges, shape) == encoded(masks)


def test_no_masks():
    edges = np.zeros((0, 8, 1), np.uint8)
    assert encode_edges(edges, (8, 8)) == []


@pytest.mark.parametrize('shape', [(1, 1), (5, 7), (32, 31)])
def test_segments_encode_as_their_masks(shape):
    rng = np.random.default_rng(1)
    for segment_map in (
        rng.integers(0, 4, shape).astype(np.int32),
        np.repeat(rng.integers(0, 4, (1, shape[1])), shape[0], axis=0),
        np.ones(shape, np.int32),
    ):
        segments = np.array([2, 1, 3, 9])
        masks = segment_map == segments[:, None, None]
        assert encode_segments(segment_map, segments) == encoded(masks)
