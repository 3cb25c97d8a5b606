import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

from simcis_jax.model.masked_decoder import MaskedDecoder, attention_mask, decoder_memory
from simcis_jax.model.prediction_heads import PredictionHeads

WIDTH, QUERIES = 8, 3
BOXES = np.full((1, QUERIES, 4), 0.5, np.float32)


def test_queries_attend_inside_their_mask_or_everywhere_if_it_is_empty():
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
    """Outputs for queries [1, Q, D] and virtual queries [1, V, D] that start at boxes [1, Q, 4]."""
    rng = np.random.default_rng(0)
    shapes = [(1, 1, 1, WIDTH), (1, 2, 2, WIDTH), (1, 4, 4, WIDTH), (3, WIDTH), (1, 8, 8, WIDTH)]
    *maps, level_embedding, mask_features = (rng.normal(size=x).astype(np.float32) for x in shapes)
    decoder = MaskedDecoder(PredictionHeads(4, WIDTH), WIDTH, 3, 2, 16)

    def call(function, queries, virtual, boxes=BOXES, **options):
        memory = decoder_memory(maps, level_embedding, mask_features)
        return function(queries, boxes, virtual, memory, **options)

    params = random_params(
        lambda key, *queries: call(functools.partial(decoder.init, key), *queries),
        random_queries(0),
        random_queries(1, 2),
    )

    @functools.partial(jax.jit, static_argnums=2)
    def decode(queries, virtual, stop_gradient=True, boxes=BOXES):
        apply = functools.partial(decoder.apply, params, stop_gradient=stop_gradient)
        return call(apply, queries, virtual, boxes)

    return decode


def random_queries(seed, count=QUERIES):
    return np.random.default_rng(seed).normal(size=(1, count, WIDTH)).astype(np.float32)


def test_virtual_and_selected_queries_do_not_affect_each_other(decode):
    logits = np.asarray(decode(random_queries(0), random_queries(1, 2)).class_logits)
    other_virtual = decode(random_queries(0), random_queries(2, 2)).class_logits
    other_real = decode(random_queries(3), random_queries(1, 2)).class_logits
    np.testing.assert_array_equal(logits[:, :, :QUERIES], other_virtual[:, :, :QUERIES])
    np.testing.assert_array_equal(logits[:, :, QUERIES:], other_real[:, :, QUERIES:])
    assert (logits[:, :, QUERIES:] != other_virtual[:, :, QUERIES:]).any(axis=-1).all()


@pytest.mark.parametrize('stop_gradient', [True, False])
def test_stop_gradient_cuts_the_layers_from_the_initial_queries(decode, stop_gradient):
    def sums(queries):
        """One weighted sum [L] of the logits of each decoder output."""
        logits = decode(queries, random_queries(1, 2), stop_gradient).class_logits[:, :, :QUERIES]
        sets = logits.reshape(len(logits), -1)
        return sets @ jnp.sin(jnp.arange(sets.shape[1]))

    changes = [bool((gradient != 0).any()) for gradient in jax.jacrev(sums)(random_queries(0))]
    assert changes[0]
    assert set(changes[1:]) == {not stop_gradient}


def test_no_gradient_passes_from_layer_to_layer_through_the_boxes(decode):
    def sums(boxes):
        """Of the boxes of every decoder output."""
        outputs = decode(random_queries(0), random_queries(1, 2), True, boxes)
        return outputs.boxes.sum(axis=(1, 2, 3))

    changes = [bool((gradient != 0).any()) for gradient in jax.jacrev(sums)(jnp.asarray(BOXES))]
    assert changes == [True, False, False, False]
