"""A sum over a traced number of chunks against the plain sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.losses.chunks import sum_chunks


def chunk(k, inputs, prepared, constants):
    """Two arrays that depend on the chunk number; NaN beyond the seventh chunk."""
    x, y = inputs
    z = jnp.where(k < 7, constants['offset'] + k, jnp.nan)
    return {'a': jnp.sin(x * z), 'b': (y * z).sum()}


X, Y = jnp.arange(3.0), jnp.arange(4.0) + 1
CONSTANTS = {'offset': jnp.float32(0.5), 'key': jax.random.key(0), 'ids': jnp.arange(3)}


@jax.jit
def value_and_gradient(num_chunks):
    def total(inputs):
        sums = sum_chunks(chunk, num_chunks, inputs, CONSTANTS)
        return sums['a'].sum() + 3 * sums['b'], sums

    return jax.value_and_grad(total, has_aux=True)((X, Y))


@pytest.mark.parametrize('num_chunks', [0, 1, 5])
def test_only_the_first_chunks_are_summed_and_differentiated(num_chunks):
    def total(inputs):
        parts = [chunk(k, inputs, (), CONSTANTS) for k in range(num_chunks)]
        sums = {
            'a': sum((part['a'] for part in parts), jnp.zeros(3)),
            'b': sum((part['b'] for part in parts), jnp.zeros(())),
        }
        return sums['a'].sum() + 3 * sums['b'], sums

    expected = jax.value_and_grad(total, has_aux=True)((X, Y))
    actual = value_and_gradient(jnp.int32(num_chunks))
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_number_of_chunks_may_differ_under_vmap():
    numbers = jnp.array([3, 0, 5])
    (totals, _), gradients = jax.vmap(value_and_gradient)(numbers)
    for i, number in enumerate(numbers):
        (total, _), gradient = value_and_gradient(number)
        np.testing.assert_allclose(totals[i], total, rtol=1e-6)
        np.testing.assert_allclose(gradients[0][i], gradient[0], rtol=1e-6)


@pytest.mark.parametrize('max_kept', [1, 3, 9])
@pytest.mark.parametrize('num_chunks', [0, 2, 5])
def test_what_is_prepared_gets_no_gradient_whether_it_is_kept_or_not(num_chunks, max_kept):
    def prepare(k, inputs, constants):
        return {'x': inputs[0] * (k + 1), 'offset': constants['offset'] * k}

    def scaled(k, inputs, prepared, constants):
        return (inputs[0] * prepared['x']).sum() + inputs[1].sum() * prepared['offset']

    @jax.jit
    def total(inputs, num_chunks):
        limits = dict(max_chunks=5, max_kept=max_kept)
        return sum_chunks(scaled, num_chunks, inputs, CONSTANTS, prepare=prepare, **limits)

    value, gradient = jax.value_and_grad(total)((X, Y), jnp.int32(num_chunks))
    times, offset = sum(range(1, num_chunks + 1)), 0.5 * sum(range(num_chunks))
    np.testing.assert_allclose(value, times * (X**2).sum() + offset * Y.sum(), rtol=1e-6)
    np.testing.assert_allclose(gradient[0], times * X, rtol=1e-6)
    np.testing.assert_allclose(gradient[1], np.full(4, offset), rtol=1e-6)
