"""The gradients of a convolution against XLA's own, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from simcis_jax.model import convolution
from simcis_jax.model.convolution import Conv, convolve, convolve_by_rows

DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')
CASES = {
    '1x1': ((7, 5), (1, 1), (1, 1), ((0, 0), (0, 0))),
    '1x1 stride 2': ((7, 6), (1, 1), (2, 2), ((0, 0), (0, 0))),
    '3x3': ((6, 9), (3, 3), (1, 1), ((1, 1), (1, 1))),
    '3x3 stride 2, odd': ((7, 9), (3, 3), (2, 2), ((1, 1), (1, 1))),
    '3x3 stride 2, even': ((8, 6), (3, 3), (2, 2), ((1, 1), (1, 1))),
    '7x7 stride 2': ((15, 12), (7, 7), (2, 2), ((3, 3), (3, 3))),
    'uneven': ((9, 8), (3, 5), (2, 3), ((0, 2), (3, 1))),
}


def arrays(size, kernel, channels=(4, 3), dtype=np.float64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, channels[0]))
    return jnp.asarray(x, dtype), jnp.asarray(rng.normal(size=(*kernel, *channels)), dtype)


def both(function, x, kernel):
    """The output, and the gradients of a weighted sum of it, each element with its own weight."""
    out, pull_back = jax.vjp(function, x, kernel)
    return out, pull_back(jnp.sin(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))


@pytest.mark.parametrize('case', CASES)
def test_gradients_equal_those_of_xla(case):
    size, kernel, strides, padding = CASES[case]
    with jax.enable_x64(True):
        inputs = arrays(size, kernel)

        def plain(x, kernel):
            return lax.conv_general_dilated(
                x, kernel, strides, padding, dimension_numbers=DIMENSIONS
            )

        def by_rows(x, kernel):
            return convolve_by_rows(x, kernel, strides, padding)

        expected = both(plain, *inputs)
        for function in (by_rows, jax.checkpoint(by_rows)):
            actual = jax.jit(lambda *x, f=function: both(f, *x))(*inputs)
            for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
                assert a.dtype == jnp.float64
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_gradients_under_vmap_equal_those_of_single_calls():
    x, kernel = arrays((6, 5), (3, 3), dtype=np.float32)
    xs = jnp.stack([x, 2 * x, x + 1])

    def gradients(x):
        return both(lambda *a: convolve_by_rows(*a, (2, 2), ((1, 1), (1, 1))), x, kernel)[1]

    together = jax.vmap(gradients)(xs)
    for i in range(3):
        for a, b in zip(together, gradients(xs[i]), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('function', [convolve, convolve_by_rows])
def test_bfloat16_is_accumulated_in_float32(function):
    x, kernel = (0.1 * abs(a) for a in arrays((40, 40), (1, 1), (16, 16), np.float32))
    strides, padding = (1, 1), ((0, 0), (0, 0))
    low = [a.astype(jnp.bfloat16) for a in (x, kernel)]

    def gradient(x, kernel):
        return jax.grad(lambda k: function(x, k, strides, padding).sum())(kernel)

    actual = gradient(*low)
    assert actual.dtype == jnp.bfloat16
    expected = gradient(low[0].astype(jnp.float32), kernel)
    np.testing.assert_allclose(actual.astype(jnp.float32), expected, rtol=2**-8)


@pytest.mark.parametrize('strides', [(1, 1), (2, 2), (1, 3)])
def test_1x1_convolution_equals_xla(strides):
    with jax.enable_x64(True):
        inputs = arrays((7, 6), (1, 1))
        ours, expected = (
            both(lambda *x, f=function, o=options: f(*x, strides, 'VALID', **o), *inputs)
            for function, options in [
                (convolve, {}),
                (lax.conv_general_dilated, dict(dimension_numbers=DIMENSIONS)),
            ]
        )
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('platform', ['cpu', 'cuda'])
def test_conv_layer_equals_that_of_flax_on_every_platform(monkeypatch, platform):
    def choose(*arguments, default, **others):
        return others.get(platform, default)(*arguments)

    monkeypatch.setattr(lax, 'platform_dependent', choose)
    x, _ = arrays((6, 7), (3, 3), (convolution.MIN_CHANNELS, 4), np.float32)
    settings = dict(features=4, kernel_size=(3, 3), strides=2)  # With the default padding, 'SAME'.
    ours, expected = Conv(**settings), convolution.nn.Conv(**settings)
    params = expected.init(jax.random.key(0), x)
    ours, expected = (
        jax.tree.leaves(both(lambda p, x, layer=layer: layer.apply(p, x), params, x))
        for layer in (ours, expected)
    )
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('options', [dict(rhs_dilation=(2, 2)), dict(feature_group_count=2)])
def test_dilated_and_grouped_convolutions_use_xla(options):
    x, kernel = arrays((8, 8), (3, 3), (32, 4), np.float32)
    kernel = kernel[:, :, : 32 // options.get('feature_group_count', 1)]
    arguments = (x, kernel, (1, 1), 'SAME')
    options = dict(dimension_numbers=DIMENSIONS) | options
    expected = lax.conv_general_dilated(*arguments, **options)
    np.testing.assert_array_equal(convolve(*arguments, **options), expected)
