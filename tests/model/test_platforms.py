"""What is traced on one platform can be compiled for another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.model.platforms import by_platform


def lowered(function, *arguments, platform):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ('platform', 'name'), [('cpu', 'sine'), ('tpu', 'tanh'), ('cuda', 'cosine')]
)
def test_each_platform_gets_its_function(platform, name):
    function = by_platform(cpu=jnp.sin, tpu=jnp.tanh, default=jnp.cos)
    text = lowered(function, jnp.ones(3), platform=platform)
    found = {x for x in ('sine', 'cosine', 'tanh') if f'stablehlo.{x} ' in text}
    assert found == {name}


def test_the_backward_pass_is_that_of_the_function_of_the_platform():
    function = by_platform(cpu=lambda x, y: jnp.sin(x) * y, default=lambda x, y: x / y)
    gradients = jax.grad(lambda *x: function(*x).sum(), argnums=(0, 1))(jnp.ones(2), jnp.ones(2))
    np.testing.assert_allclose(gradients[0], np.cos([1, 1]), rtol=1e-6)
    np.testing.assert_allclose(gradients[1], np.sin([1, 1]), rtol=1e-6)
    assert 'divide' in lowered(jax.grad(lambda x: function(x, x).sum()), 1.0, platform='cuda')


@pytest.fixture(scope='module')
def evaluation():
    """A small network, traced once on CPU."""
    model = Mask2Former(
        5, backbone='small', num_queries=4, hidden_dim=16, encoder_layers=1, decoder_layers=1
    )
    image = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.uint8)
    params = jax.eval_shape(model.init, jax.random.key(0), image)
    return jax.jit(model.apply).trace(params, image)


@pytest.mark.parametrize('platform', ['cpu', 'cuda', 'tpu'])
def test_kernels_of_a_tpu_are_compiled_for_a_tpu_only(evaluation, platform):
    text = evaluation.lower(lowering_platforms=(platform,)).as_text()
    assert ('tpu_custom_call' in text) == (platform == 'tpu')
    # One loop is that over the layers of the encoder; only on CPU does sampling loop over points.
    assert (text.count('stablehlo.while') > 1) == (platform == 'cpu')


def test_nothing_but_the_arguments_is_kept_for_the_backward_pass():
    function = by_platform(default=lambda x, y: jnp.exp(jnp.outer(x, y)).sum(axis=1))
    x, y = jnp.arange(3.0), jnp.arange(4.0)
    _, pull_back = jax.vjp(function, x, y)
    first, second = jax.tree.leaves(pull_back)
    np.testing.assert_array_equal(first, x)
    np.testing.assert_array_equal(second, y)
