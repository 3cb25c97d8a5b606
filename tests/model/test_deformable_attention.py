import functools

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.model.deformable_attention import (
    IMPLEMENTATIONS,
    deformable_attention,
    initial_offsets,
)
from simcis_jax.model.pixel_decoder import grid_centres

SHAPES = ((3, 4), (6, 8), (12, 16))
RUNNABLE = sorted(set(IMPLEMENTATIONS) - {'pallas'})  # Which needs a TPU.
every_implementation = pytest.mark.parametrize('implementation', RUNNABLE)


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
def test_values_equal_the_published_code(golden, inputs, implementation):
    actual = attend(implementation, *inputs)
    np.testing.assert_allclose(actual, golden['msda/out'], rtol=1e-5, atol=1e-6)


@every_implementation
def test_gradients_equal_the_published_code(golden, inputs, implementation):
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

    expected, *others = map(gradient, RUNNABLE)
    for actual in others:
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@every_implementation
def test_a_point_on_the_edge_of_the_map_reads_half_of_the_pixel(implementation):
    value = jnp.full((1, 4, 1, 1), 8.0)  # One map of 2x2; the outer edge is half a pixel away.
    locations = jnp.array([[0.5, 0.5], [0.0, 0.5], [0.0, 0.0], [-0.5, 0.5]])
    locations = locations.reshape(1, 4, 1, 1, 1, 2)
    out = attend(implementation, value, locations, jnp.ones((1, 4, 1, 1, 1)), ((2, 2),))
    np.testing.assert_allclose(out.ravel(), [8, 4, 2, 0])


def test_reference_points_equal_the_published_code(golden):
    expected = golden['msda/reference_points'][0]
    for level in range(3):
        np.testing.assert_allclose(grid_centres(SHAPES), expected[:, level], rtol=1e-6)


def test_initial_offsets_equal_the_published_code():
    expected = golden_weights.draw('sampling_offsets.bias', (192,), '')
    np.testing.assert_allclose(initial_offsets(8, 3, 4).ravel(), expected, atol=1e-6)


@pytest.mark.parametrize('implementation', ['matmul', 'scan'])
def test_implementations_agree_in_float64(implementation):
    """On maps of odd sizes, with many points outside."""
    shapes = ((1, 2), (5, 3), (7, 11))
    num_positions = sum(h * w for h, w in shapes)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        inputs = (
            jnp.asarray(rng.normal(size=(2, num_positions, 3, 4))),
            jnp.asarray(rng.uniform(-0.6, 1.6, size=(2, 6, 3, 3, 2, 2))),
            jnp.asarray(rng.normal(size=(2, 6, 3, 3, 2))),
        )
        gradient = jnp.asarray(rng.normal(size=(2, 6, 12)))

        @functools.partial(jax.jit, static_argnums=0)
        def both(implementation, *inputs):
            out, pull_back = jax.vjp(lambda *x: attend(implementation, *x, shapes=shapes), *inputs)
            return out, *pull_back(gradient)

        arrays = zip(both(implementation, *inputs), both('gather', *inputs), strict=True)
        for actual, expected in arrays:
            assert actual.dtype == jnp.float64
            np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)


@every_implementation
def test_bfloat16_values_are_accumulated_in_float32(inputs, implementation):
    value, locations, weights = inputs
    low = jnp.asarray(value, jnp.bfloat16)

    def both(value):
        out, pull_back = jax.vjp(lambda v: attend(implementation, v, locations, weights), value)
        return out, pull_back(jnp.ones_like(out))[0]

    (out, gradient), expected = both(low), both(low.astype(jnp.float32))
    assert out.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    if implementation == 'pallas, emulated':  # Its shares are bfloat16, too.
        np.testing.assert_allclose(out, expected[0], rtol=2**-7, atol=2**-8)
    else:
        np.testing.assert_allclose(out, expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient.astype(jnp.float32), expected[1], rtol=2**-7, atol=2**-8)


@every_implementation
def test_vmap_over_batches_equals_single_batches(inputs, implementation):
    value, locations, weights = inputs
    pairs = jnp.stack([value, -2 * value])
    together = jax.vmap(lambda v: attend(implementation, v, locations, weights))(pairs)
    alone = attend(implementation, value, locations, weights)
    np.testing.assert_allclose(together, jnp.stack([alone, -2 * alone]), rtol=1e-5, atol=1e-5)
