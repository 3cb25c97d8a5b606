"""Layers with a backward pass of their own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.model.layers import relu


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
