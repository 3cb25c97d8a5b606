"""Layers with a backward pass of their own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.model.layers import relu, softmax


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_relu_keeps_its_result_only_and_has_the_gradient_of_the_library(dtype):
    x = jnp.array([-jnp.inf, -2, -0.0, 0, 1e-30, 3, jnp.inf], dtype)
    y, pull_back = jax.vjp(relu, x)
    (kept,) = jax.tree.leaves(pull_back)
    np.testing.assert_array_equal(kept, y)
    expected, library = jax.vjp(nn.relu, x)
    np.testing.assert_array_equal(y, expected)
    gradient = jnp.arange(1, 8, dtype=dtype)
    np.testing.assert_array_equal(*pull_back(gradient), *library(gradient))


def test_relu_of_nan_is_nan():
    assert np.isnan(relu(jnp.nan))


@pytest.mark.parametrize('axes', [(-1,), (-2, -1)])
def test_softmax_keeps_its_result_only_and_has_the_gradient_in_float64(axes):
    x = np.random.default_rng(0).normal(0, 3, (5, 2, 3, 4)).astype(np.float32)
    y, pull_back = jax.vjp(lambda x: softmax(x, axes), x)
    (kept,) = jax.tree.leaves(pull_back)
    np.testing.assert_array_equal(kept, y)
    np.testing.assert_array_equal(y, jax.nn.softmax(x, axes))
    gradient = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    exact = np.exp(np.float64(x))
    exact /= exact.sum(axis=axes, keepdims=True)
    expected = exact * (gradient - (exact * gradient).sum(axis=axes, keepdims=True))
    np.testing.assert_allclose(pull_back(gradient)[0], expected, rtol=1e-5, atol=1e-6)
