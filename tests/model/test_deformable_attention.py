import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.model.deformable_attention import (
    IMPLEMENTATIONS,
    deformable_attention,
    ring_bias,
)
from simcis_jax.model.pixel_decoder import grid_centres

SHAPES = ((3, 4), (6, 8), (12, 16))
every_implementation = pytest.mark.parametrize('implementation', sorted(IMPLEMENTATIONS))


@pytest.fixture(scope='module')
def golden():
    return golden_weights.load('components')


@pytest.fixture(scope='module')
def inputs(golden):
    weights = jax.nn.softmax(golden['msda/weight_logits'], axis=-1)
    weights = weights.reshape(golden['msda/locations'].shape[:-1])
    return golden['msda/value'], golden['msda/locations'], weights


def attend(implementation, value, locations, weights, shapes=SHAPES):
    return deformable_attention(value, shapes, locations, weights, implementation)


@every_implementation
def test_values_are_the_published_ones(golden, inputs, implementation):
    actual = attend(implementation, *inputs)
    np.testing.assert_allclose(actual, golden['msda/out'], rtol=1e-5, atol=1e-6)


@every_implementation
def test_gradients_are_the_published_ones(golden, inputs, implementation):
    value, locations, weights = inputs
    _, pull_back = jax.vjp(lambda v, x: attend(implementation, v, x, weights), value, locations)
    to_value, to_locations = pull_back(golden['msda/grad_out'])
    np.testing.assert_allclose(to_value, golden['msda/grad_value'], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(to_locations, golden['msda/grad_locations'], rtol=1e-5, atol=2e-5)


def test_implementations_agree_on_the_gradient_of_the_weights(golden, inputs):
    value, locations, weights = inputs

    def gradient(implementation):
        _, pull_back = jax.vjp(lambda w: attend(implementation, value, locations, w), weights)
        return pull_back(golden['msda/grad_out'])[0]

    expected, *others = map(gradient, sorted(IMPLEMENTATIONS))
    for actual in others:
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@every_implementation
def test_a_point_half_outside_the_map_reads_half(implementation):
    value = jnp.full((1, 4, 1, 1), 8.0)  # One map of 2x2; the outer edge is half a pixel away.
    locations = jnp.array([[0.5, 0.5], [0.0, 0.5], [0.0, 0.0], [-0.5, 0.5]])
    locations = locations.reshape(1, 4, 1, 1, 1, 2)
    out = attend(implementation, value, locations, jnp.ones((1, 4, 1, 1, 1)), ((2, 2),))
    np.testing.assert_allclose(out.ravel(), [8, 4, 2, 0])


def test_references_are_the_published_ones(golden):
    expected = golden['msda/reference_points'][0]
    for level in range(3):
        np.testing.assert_allclose(grid_centres(SHAPES), expected[:, level], rtol=1e-6)


def test_initial_offsets_are_the_published_ring():
    expected = golden_weights.draw('sampling_offsets.bias', (192,), '')
    np.testing.assert_allclose(ring_bias(8, 3, 4).ravel(), expected, atol=1e-6)
