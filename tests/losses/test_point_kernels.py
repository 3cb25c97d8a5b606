"""The kernels for TPU, emulated, against plain functions in float64."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.losses import point_kernels, point_sampling
from simcis_jax.losses.segmentation import PointSampling, match_targets, segmentation_losses
from simcis_jax.losses.threshold_search import bottom_k, smallest
from simcis_jax.losses.weights import LossWeights
from simcis_jax.types import Predictions, Targets

# Height and width of a map, number of points.
CASES = [(1, 1, 1), (5, 7, 40), (40, 131, 1025)]


def points_around(rng, num_points, batch=()):
    """Points in and around the map, which float32 represents exactly."""
    return rng.integers(-400, 1400, (*batch, num_points, 2)).astype(np.float32) / 1024


def relative_error(actual, expected):
    return np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(('height', 'width', 'num_points'), CASES)
def test_samples_and_their_gradients_equal_float64(height, width, num_points):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 2, height, width)).astype(np.float32)
    points = points_around(rng, num_points, (2, 2)).clip(-0.2, 1.2)
    to_samples = rng.normal(size=points.shape[:-1]).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradient(sample, maps, points, to_samples):
        samples, pull_back = jax.vjp(lambda maps: sample(maps, points), maps)
        return samples, *pull_back(to_samples)

    with jax.enable_x64(True):
        exact = [np.float64(x) for x in (maps, points, to_samples)]
        expected = value_and_gradient(point_sampling.sample_by_gather, *exact)
        expected = [np.asarray(x) for x in expected]
    emulated = functools.partial(point_kernels.sample, interpret=True)
    actual = value_and_gradient(emulated, maps, points, to_samples)
    assert np.abs(expected[0]).max() > 0 and np.abs(expected[1]).max() > 0
    for a, e in zip(actual, expected, strict=True):
        assert relative_error(a, e) < 1e-5


@pytest.mark.parametrize(('height', 'width'), [(1, 1), (31, 5), (63, 131)])
def test_samples_of_segments_equal_lookups(height, width):
    rng = np.random.default_rng(1)
    maps = rng.integers(0, 4, (2, 1, height, width)).astype(np.uint8)
    points = points_around(rng, 300, (2, 3))
    slots = np.arange(1, 4)
    actual = point_kernels.sample_segments(maps, points, slots, interpret=True)
    expected = point_sampling.segments_by_gather(maps, points, slots)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert expected.max() > 0.5


def test_samples_of_slots_equal_lookups():
    rng = np.random.default_rng(2)
    segment_map = rng.integers(0, 7, (9, 140)).astype(np.int32)
    points = points_around(rng, 300)
    actual = point_kernels.sample_slots(segment_map, points, 5, interpret=True)
    expected = point_sampling.slots_by_gather(segment_map, points, 5)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert expected.max() > 0.5


@pytest.mark.parametrize(('size', 'count'), [(1, 1), (300, 0), (300, 1), (2049, 700), (900, 900)])
def test_the_chosen_are_compacted_in_their_order(size, count):
    rng = np.random.default_rng(3)
    values, other = rng.exponential(size=(2, 2, size)).astype(np.float32)
    chosen = smallest(values, count)
    compacted = point_kernels.compact(chosen, [values, other], count, interpret=True)
    index = np.asarray(bottom_k(values, count))
    for actual, array in zip(compacted, (values, other), strict=True):
        np.testing.assert_array_equal(actual, np.take_along_axis(array, index, axis=1))


def num_indices(text):
    """The numbers of indices of all gathers and scatters in StableHLO."""
    types = re.findall(r'"?stablehlo\.(?:gather|scatter)"?\(.*?index_vector_dim = (\d+).*?: '
                       r'\(tensor<[^>]*>, tensor<([\dx]*)xi\d+>', text, re.DOTALL)  # fmt: skip
    for index_dim, shape in types:
        sizes = list(map(int, shape.split('x')))
        yield math.prod(sizes) // (sizes[int(index_dim)] if int(index_dim) < len(sizes) else 1)


def test_no_large_gather_or_scatter_is_left_on_a_tpu():
    """Losses of the published size and their gradients, as they are handed to the compiler."""
    outputs, images, queries, side = 10, 8, 100, 160

    def shape(*sizes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    predictions = Predictions(
        class_logits=shape(outputs, images, queries, 150),
        mask_embeddings=shape(outputs, images, queries, 256),
        boxes=shape(outputs, images, queries, 4),
        mask_features=shape(images, side, side, 256),
        virtual_class_logits=shape(outputs, images, 0, 150),
        selection=None,
    )
    targets = Targets(
        segment_map=shape(images, 4 * side, 4 * side, dtype=jnp.uint8),
        labels=shape(images, queries, dtype=jnp.int32),
        boxes=shape(images, queries, 4),
        dropped=shape(images, dtype=jnp.int32),
    )

    def total(predictions, targets):
        keys = jax.random.split(jax.random.key(0), images)
        sampling = PointSampling()
        matches = match_targets(
            predictions, targets, keys, weights=LossWeights(), num_points=sampling.num_points
        )
        terms = segmentation_losses(predictions, targets, matches, keys, sampling=sampling)
        return sum(x.sum() for x in terms.values())

    traced = jax.jit(jax.grad(total)).trace(predictions, targets)
    largest = {
        platform: max(num_indices(traced.lower(lowering_platforms=(platform,)).as_text()))
        for platform in ('tpu', 'cuda')
    }
    assert largest['tpu'] <= 1_000_000 < largest['cuda']
