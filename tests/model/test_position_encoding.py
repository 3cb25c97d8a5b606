import golden_weights
import numpy as np
import pytest

from simcis_jax.model.position_encoding import encode_boxes, encode_grid, inverse_sigmoid


@pytest.fixture(scope='module')
def golden():
    return golden_weights.load('components')


@pytest.mark.parametrize('shape', [(3, 5), (8, 10)])
def test_grid_encoding_equals_the_published_code(golden, shape):
    expected = golden[f'pe_sine/{shape[0]}x{shape[1]}']
    actual = np.moveaxis(encode_grid(shape, 256), -1, 0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_box_encoding_equals_the_published_code(golden):
    actual = encode_boxes(golden['pe_box/boxes'], 128)
    np.testing.assert_allclose(actual, golden['pe_box/out'], rtol=1e-5, atol=1e-6)


def test_inverse_sigmoid_is_clamped_as_published(golden):
    actual = inverse_sigmoid(golden['inverse_sigmoid/x'])
    np.testing.assert_allclose(actual, golden['inverse_sigmoid/y'], rtol=1e-5, atol=1e-6)
