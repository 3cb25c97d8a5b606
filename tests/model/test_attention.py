"""Attention and LayerNorm: values and hand-written gradients against plain JAX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from simcis_jax.model.attention import attend
from simcis_jax.model.layers import LayerNorm, normalize_rows


def with_gradients(function, *inputs):
    """The output, and the gradients of a weighted sum of it, each element with its own weight."""
    out, pull_back = jax.vjp(function, *inputs)
    weights = jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
    return out, *pull_back(weights.astype(out.dtype))


def plain_attention(query, key, value, allowed):
    logits = jnp.einsum('bmnd,bmsd->bmns', query, key)
    if allowed is not None:
        logits = jnp.where(allowed[:, None], logits, -jnp.inf)
    return jnp.einsum('bmns,bmsd->bmnd', jax.nn.softmax(logits), value)


@pytest.mark.parametrize('masked', [False, True])
def test_attention_and_its_gradients_equal_plain_softmax_attention(masked):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        query = rng.normal(size=(2, 3, 5, 4))
        key, value = rng.normal(size=(2, 2, 3, 7, 4))
        allowed = rng.random((2, 5, 7)) < 0.4
        allowed[..., 2] = True
        allowed[0, 0] = np.arange(7) == 2  # A query that may attend to a single key.
        allowed = jnp.asarray(allowed) if masked else None
        inputs = [jnp.asarray(x) for x in (query, key, value)]
        ours, plain = (
            with_gradients(lambda *x, f=function: f(*x, allowed), *inputs)
            for function in (attend, plain_attention)
        )
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_masked_keys_get_no_gradient():
    rng = np.random.default_rng(1)
    query, key, value = jnp.asarray(rng.normal(size=(3, 1, 1, 2, 4)), jnp.float32)
    allowed = jnp.array([[[True, False], [True, False]]])
    _, _, to_key, to_value = with_gradients(lambda *x: attend(*x, allowed), query, key, value)
    assert not to_key[..., 1, :].any() and not to_value[..., 1, :].any()
    assert to_value[..., 0, :].any()


def relative_errors_in_bfloat16(offset):
    """Of output and gradients, against float64; `offset` shifts all values of a head."""
    rng = np.random.default_rng(2)
    query = rng.normal(size=(2, 4, 100, 32)) * 32**-0.5
    key, value = rng.normal(size=(2, 2, 4, 400, 32))
    value += offset * rng.normal(size=(2, 4, 1, 32))
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in (query, key, value)]
    gradient = jnp.asarray(rng.normal(size=query.shape), jnp.bfloat16)

    def outputs(dtype):
        out, pull_back = jax.vjp(attend, *(x.astype(dtype) for x in inputs))
        found = out, *pull_back(gradient.astype(dtype))
        assert {x.dtype for x in found} == {jnp.dtype(dtype)}
        return [np.asarray(x, np.float64) for x in found]

    low = outputs('bfloat16')
    with jax.enable_x64(True):
        exact = outputs('float64')
    return [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(low, exact, strict=True)]


def test_attention_in_bfloat16_rounds_operands_and_results_only():
    # Rounding one operand or result to 8 bits costs 0.17 %; two or three are rounded.
    assert max(relative_errors_in_bfloat16(offset=0)) < 0.0032
    # The gradient of the softmax subtracts the mean, which is large here.
    assert max(relative_errors_in_bfloat16(offset=1)) < 0.005


def test_layer_norm_and_its_gradients_equal_those_of_flax():
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(2, 5, 7)) * 3 + 1, jnp.float32)
    params = {'scale': jnp.asarray(rng.normal(size=7), jnp.float32), 'bias': jnp.arange(7.0)}
    flax = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)
    expected = with_gradients(lambda p, x: flax.apply({'params': p}, x), params, x)
    actual = with_gradients(lambda p, x: LayerNorm().apply({'params': p}, x), params, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected
    )
    init = LayerNorm().init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, init, flax.init(jax.random.key(0), x))


def test_layer_norm_gradients_equal_finite_differences():
    rng = np.random.default_rng(4)
    with jax.enable_x64(True):
        inputs = [jnp.asarray(rng.normal(size=shape)) for shape in ((3, 6), (6,), (6,))]
        check_grads(normalize_rows, inputs, order=1, modes=['rev'])


def test_layer_norm_of_bfloat16_is_float32():
    x = jnp.ones((2, 4), jnp.bfloat16)
    assert LayerNorm().init_with_output(jax.random.key(0), x)[0].dtype == jnp.float32
