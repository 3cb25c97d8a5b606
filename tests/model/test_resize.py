import golden_weights
import jax
import numpy as np
import pytest

from simcis_jax.model.resize import bilinear_matrix, resize, resize_features


@pytest.fixture(scope='module')
def golden():
    return golden_weights.load('components')


@pytest.mark.parametrize('name', ['resize/up', 'resize/down'])
def test_resizing_is_bilinear_without_antialiasing(golden, name):
    expected = golden[name]
    actual = resize(golden['resize/x'], expected.shape[-2:])
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['resize/up', 'resize/down'])
def test_features_are_resized_like_maps(golden, name):
    expected = np.moveaxis(golden[name], -3, -1)
    actual = resize_features(np.moveaxis(golden['resize/x'], -3, -1), expected.shape[-3:-1])
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_doubling_a_row_interpolates_and_repeats_its_ends():
    doubled = bilinear_matrix(6, 3) @ np.array([0.0, 4.0, 8.0])
    np.testing.assert_allclose(doubled, [0, 1, 3, 5, 7, 8])


def test_sizes_inside_padding_may_be_traced():
    matrix = jax.jit(lambda a, b: bilinear_matrix(8, 5, size_out=a, size_in=b))(6, 3)
    row = np.array([0.0, 4.0, 8.0, np.inf, -1.0], np.float32)
    np.testing.assert_array_equal(matrix[:6, 3:], 0)
    np.testing.assert_allclose(matrix[:6, :3] @ row[:3], [0, 1, 3, 5, 7, 8])
