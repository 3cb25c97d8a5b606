"""Bilinear samples against the published code, SciPy, and the masks of a segment map."""

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from simcis_jax.losses.point_sampling import (
    keep_uncertain,
    sample_features,
    sample_map,
    sample_segments,
    sample_slots,
    uncertain_points,
)
from simcis_jax.losses.threshold_search import bottom_k, smallest


@pytest.fixture(scope='module')
def golden():
    return golden_weights.load('components')


def scipy_reads(array, points):
    """Bilinear samples with zero padding, computed by SciPy."""
    padded = np.pad(array, 1)
    y = points[:, 1] * array.shape[0] - 0.5 + 1
    x = points[:, 0] * array.shape[1] - 0.5 + 1
    return map_coordinates(padded, [y, x], order=1, mode='constant')


def sample_maps(maps, points):
    """Maps [N, h, w] as the channels of a feature map: [N, P]."""
    return sample_features(np.moveaxis(maps, 0, -1), points).T


def points_everywhere(rng, num_points=200):
    """Uniform points, and the corners and edges of the map."""
    edges = [(0, 0), (1, 1), (0, 1), (1, 0), (0.5, 0), (1, 0.5), (1e-6, 1 - 1e-6)]
    return np.concatenate([rng.random((num_points, 2)), edges]).astype(np.float32)


def test_samples_equal_the_published_code(golden):
    for maps, points, expected in zip(
        golden['point_sample/x'],
        golden['point_sample/points'],
        golden['point_sample/out'],
        strict=True,
    ):
        np.testing.assert_allclose(sample_maps(maps, points), expected, rtol=1e-5, atol=2e-6)


def test_samples_equal_those_of_scipy():
    rng = np.random.default_rng(0)
    maps, points = rng.normal(size=(3, 5, 8)).astype(np.float32), points_everywhere(rng)
    expected = [scipy_reads(array, points) for array in maps]
    np.testing.assert_allclose(sample_maps(maps, points), expected, atol=1e-5)


def test_maps_with_their_own_points_are_sampled_like_single_maps():
    rng = np.random.default_rng(1)
    maps, points = rng.normal(size=(3, 5, 8)).astype(np.float32), points_everywhere(rng)
    single = [sample_map(array, points) for array in maps]
    np.testing.assert_allclose(single, sample_maps(maps, points), rtol=1e-6)
    several = [[maps[0], maps[1], maps[2]], [maps[2], maps[0], maps[1]]]
    own_points = np.stack([[points, 1 - points, points / 2], [points, points, points]])
    together = sample_map(np.array(several), own_points)
    for i, j in np.ndindex(2, 3):
        expected = sample_map(several[i][j], own_points[i, j])
        np.testing.assert_allclose(together[i, j], expected, rtol=1e-6)


def test_pixel_centres_read_the_pixel_and_map_corners_a_quarter_of_it():
    array = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    points = jnp.array([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(sample_map(array, points), [1, 2, 3, 0.25, 1.0], atol=1e-6)


def test_samples_outside_the_map_and_their_gradients_are_zero():
    points = jnp.array([[-1.0, 0.5], [2.0, 0.5], [0.5, -0.6], [0.5, 1.7]])
    value, gradient = jax.value_and_grad(lambda x: sample_map(x, points).sum())(jnp.ones((3, 4)))
    assert value == 0 and not gradient.any()


def test_the_gradient_of_a_sample_is_its_bilinear_weights():
    gradient = jax.grad(lambda x: sample_map(x, jnp.array([[0.5, 0.375]])).sum())(jnp.zeros((4, 2)))
    np.testing.assert_allclose(gradient, [[0, 0], [0.5, 0.5], [0, 0], [0, 0]], atol=1e-6)


@pytest.mark.parametrize('dtype', [np.uint8, np.int32])
def test_sampling_segments_equals_sampling_their_masks(dtype):
    rng = np.random.default_rng(2)
    segment_map = rng.integers(0, 6, (7, 9)).astype(dtype)
    points = points_everywhere(rng)
    masks = np.stack([segment_map == k for k in range(1, 7)]).astype(np.float32)
    assert not masks[5].any()  # An empty slot reads zero.
    shares = np.stack([sample_segments(segment_map, points, np.array(k)) for k in range(1, 7)])
    np.testing.assert_allclose(shares, [scipy_reads(m, points) for m in masks], atol=1e-5)
    np.testing.assert_allclose(sample_slots(segment_map, points, 6), shares.T, atol=1e-6)
    maps, slots = np.stack([segment_map, segment_map[::-1]]), np.array([[3], [2]])
    several = sample_segments(maps[:, None], np.stack([[points, points / 2]] * 2), slots)
    np.testing.assert_allclose(several[0, 0], shares[2], atol=1e-6)
    expected = sample_segments(segment_map[::-1], points / 2, np.array(2))
    np.testing.assert_allclose(several[1, 1], expected, atol=1e-6)


def test_uncertain_points_equal_the_published_code(golden):
    for logits, candidates, extra, expected in zip(
        golden['uncertain/logits'][:, 0],
        golden['uncertain/candidates'],
        golden['uncertain/extra'],
        golden['uncertain/points'],
        strict=True,
    ):
        points = np.asarray(keep_uncertain(logits, candidates, extra, 7))
        np.testing.assert_array_equal(points[7:], expected[7:])
        assert set(map(tuple, points[:7])) == set(map(tuple, expected[:7]))


def test_uncertain_points_lie_nearer_to_the_border_than_uniform_ones():
    ramp = jnp.broadcast_to(jnp.linspace(-8, 8, 32), (32, 32))
    points = uncertain_points(
        jax.random.key(0), ramp, num_points=64, oversample_ratio=3.0, importance_ratio=0.75
    )
    assert points.shape == (64, 2) and points.min() >= 0 and points.max() <= 1
    distance = np.abs(np.asarray(points[:, 0]) - 0.5)
    # The 48 of 192 uniform candidates nearest to the middle fill about a quarter of the width.
    assert distance[:48].max() < 0.2 < distance[48:].max()


@pytest.mark.parametrize('count', [0, 1, 30, 63, 64])
def test_bottom_k_equals_a_stable_sort(count):
    rng = np.random.default_rng(0)
    halves = np.array([0.0, 0.5, 1.0, 1.5, 2.0, np.inf], np.float32)
    rows = np.concatenate([rng.choice(halves, (20, 64)), rng.exponential(size=(20, 64))])
    rows = rows.astype(np.float32)
    chosen = jax.jit(lambda x: bottom_k(x, count))(rows.reshape(4, 10, 64))
    expected = np.sort(np.argsort(rows, axis=1, kind='stable')[:, :count])
    np.testing.assert_array_equal(chosen, expected.reshape(4, 10, count))
    np.testing.assert_array_equal(bottom_k(rows[0], count), expected[0])


def test_the_choice_reads_what_the_search_returns_and_not_the_values():
    """Otherwise a compiler might compute them again, rounded in another way."""
    jaxpr = jax.make_jaxpr(lambda x: smallest(x, 3))(jnp.ones((2, 8))).jaxpr
    loops = [x.primitive.name in ('scan', 'while') for x in jaxpr.eqns]
    assert loops.count(True) == 1
    before, after = jaxpr.eqns[: loops.index(True)], jaxpr.eqns[loops.index(True) + 1 :]
    computed = {*jaxpr.invars, *(y for x in before for y in x.outvars)}
    read = {y for x in after for y in x.invars if not hasattr(y, 'val')}  # Without literals.
    assert read and not read & computed


@pytest.mark.parametrize('count', [1, 5, 299])
def test_as_many_are_chosen_as_are_asked_for(count):
    rng = np.random.default_rng(0)
    values = rng.choice(
        np.array([0, 1e-45, 1e-38, 1.0, 3e38, np.inf, np.nan], np.float32), (9, 300)
    )
    assert (smallest(values, count).sum(axis=-1) == count).all()


def test_uncertain_points_pass_no_gradient_to_the_logits():
    def loss(logits):
        points = uncertain_points(
            jax.random.key(0), logits, num_points=8, oversample_ratio=3.0, importance_ratio=0.75
        )
        return points.sum()

    assert not jax.grad(loss)(jax.random.normal(jax.random.key(1), (5, 5))).any()
