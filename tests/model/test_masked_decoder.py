import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.model.heads import PredictionHeads
from simcis_jax.model.masked_decoder import MaskedDecoder, attention_mask, decoder_memory

WIDTH, QUERIES = 8, 3


def test_queries_attend_where_their_mask_is_on_or_everywhere():
    embeddings = jnp.array([[[1.0], [-1.0], [0.0]]])
    features = jnp.array([[[2.0], [-3.0], [1.0]], [[-1.0], [-2.0], [-3.0]]])
    allowed = attention_mask(jnp.repeat(embeddings, 2, axis=0), features)
    everywhere = [True, True, True]
    np.testing.assert_array_equal(
        allowed,
        [
            [[True, False, True], [False, True, False], everywhere],
            [everywhere, everywhere, everywhere],
        ],
    )


@pytest.fixture(scope='module')
def decode():
    keys = jax.random.split(jax.random.key(0), 6)
    maps = [jax.random.normal(keys[i], (1, 2**i, 2**i, WIDTH)) for i in range(3)]
    level_embedding = jax.random.normal(keys[3], (3, WIDTH))
    memory = decoder_memory(maps, level_embedding, jax.random.normal(keys[4], (1, 8, 8, WIDTH)))
    decoder = MaskedDecoder(PredictionHeads(4, WIDTH), WIDTH, 3, 2, 16)
    boxes = jnp.full((1, QUERIES, 4), 0.5)
    queries, virtual = jnp.zeros((1, QUERIES, WIDTH)), jnp.zeros((1, 2, WIDTH))
    params = jax.jit(decoder.init)(keys[5], queries, boxes, virtual, memory)

    def decode(queries, virtual, stop_gradient=True):
        return decoder.apply(params, queries, boxes, virtual, memory, stop_gradient)

    return jax.jit(decode, static_argnums=2)


def random_queries(seed, count=QUERIES):
    return jax.random.normal(jax.random.key(seed), (1, count, WIDTH))


def test_virtual_queries_and_real_ones_do_not_see_each_other(decode):
    first = decode(random_queries(0), random_queries(1, 2))
    other_virtual = decode(random_queries(0), random_queries(2, 2))
    other_real = decode(random_queries(3), random_queries(1, 2))
    logits, with_other_virtual, with_other_real = (
        np.asarray(x.class_logits) for x in (first, other_virtual, other_real)
    )
    np.testing.assert_array_equal(logits[:, :, :QUERIES], with_other_virtual[:, :, :QUERIES])
    np.testing.assert_array_equal(logits[:, :, QUERIES:], with_other_real[:, :, QUERIES:])
    assert (logits[:, :, QUERIES:] != with_other_virtual[:, :, QUERIES:]).any(axis=-1).all()


@pytest.mark.parametrize('stop_gradient', [True, False])
def test_layers_send_gradient_to_the_queries_only_where_it_is_not_stopped(decode, stop_gradient):
    def gradient(prediction_set):
        def score(queries):
            logits = decode(queries, random_queries(1, 2), stop_gradient).class_logits
            return (logits[prediction_set, :, :QUERIES] ** 2).sum()

        return np.asarray(jax.grad(score)(random_queries(0)))

    assert (gradient(0) != 0).any()
    assert (gradient(-1) == 0).all() == stop_gradient
