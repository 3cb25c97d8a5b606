import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params
from traced import products

from simcis_jax.model.mask2former import PIXEL_MEAN, PIXEL_STD, Mask2Former, normalize

SMALL = dict(
    num_classes=5,
    backbone='small',
    num_queries=6,
    hidden_dim=16,
    num_heads=2,
    encoder_layers=1,
    encoder_feedforward=16,
    decoder_layers=2,
    decoder_feedforward=16,
)
NUM_TOKENS = 2 * 3 + 4 * 6 + 8 * 12


def image(seed=0, shape=(2, 32, 48, 3)):
    return jax.random.randint(jax.random.key(seed), shape, 0, 256).astype(jnp.uint8)


@pytest.fixture(scope='module')
def params():
    return random_params(Mask2Former(**SMALL).init, image())


@functools.partial(jax.jit, static_argnames='boxes')
def predict(params, seen, virtual_queries, positions, boxes='tokens'):
    """Predictions, and outputs of the replayed queries; compiled once for nearly all tests."""
    model = Mask2Former(**SMALL, replay_boxes=boxes)
    every_token = jnp.broadcast_to(jnp.arange(NUM_TOKENS), (2, NUM_TOKENS))
    return model.apply(
        params,
        image(),
        seen,
        virtual_queries,
        scored_positions=every_token,
        replay_positions=positions,
    )


def replay(params, seen=(True,) * 5, order=slice(None), **settings):
    """As `predict`, with three virtual queries, replaying the model's own selection in `order`."""
    seen, first = jnp.array(seen), jnp.broadcast_to(jnp.arange(6), (2, 6))
    virtual_queries = jax.random.normal(jax.random.key(2), (2, 3, 16))
    own = predict(params, seen, virtual_queries, first)[0].selection.positions
    return predict(params, seen, virtual_queries, own[:, order], **settings)


def test_images_are_standardised_and_padding_is_zero():
    pixels = jnp.broadcast_to(PIXEL_MEAN + 2 * PIXEL_STD, (2, 3, 4, 3))
    sizes = np.array([[3, 1], [2, 4]])
    expected = np.zeros((2, 3, 4, 3))
    expected[0, :3, :1] = 2
    expected[1, :2, :4] = 2
    np.testing.assert_allclose(normalize(pixels, sizes), expected, atol=1e-5)


def test_replaying_its_own_selection_repeats_the_predictions(params):
    predictions, replayed = replay(params)
    for name in ('class_logits', 'mask_embeddings', 'boxes'):
        np.testing.assert_allclose(
            getattr(replayed, name), getattr(predictions, name), rtol=1e-4, atol=1e-5, err_msg=name
        )
    assert predictions.virtual_class_logits.shape == (3, 2, 3, 5)


@pytest.mark.parametrize(
    'boxes, order', [('tokens', slice(None, None, -1)), ('selection', slice(None))]
)
def test_initial_boxes_of_replayed_queries_are_their_own_or_as_published(params, boxes, order):
    predictions, replayed = replay(params, order=slice(None, None, -1), boxes=boxes)
    np.testing.assert_allclose(replayed.boxes[0], predictions.boxes[0][:, order], atol=1e-5)
    np.testing.assert_allclose(
        replayed.class_logits[0], predictions.class_logits[0][:, ::-1], rtol=1e-4, atol=1e-5
    )


def test_only_prototypes_of_seen_classes_select_queries(params):
    selection = replay(params, seen=[False, True, False, False, True])[0].selection
    scores = np.asarray(selection.token_logits)[..., [1, 4]].max(axis=-1)
    np.testing.assert_array_equal(selection.positions, np.argsort(-scores, axis=-1)[:, :6])


def test_scored_tokens_have_the_logits_that_select(params):
    model, positions = Mask2Former(**SMALL), jnp.array([[7, 0, 125], [3, 3, 64]])

    @jax.jit
    def score(params):
        return model.apply(params, image(), scored_positions=positions).selection.token_logits

    every_token = replay(params)[0].selection.token_logits
    expected = jnp.take_along_axis(every_token, positions[..., None], axis=1)
    np.testing.assert_allclose(score(params), expected, rtol=1e-5, atol=1e-5)


def test_no_gradient_passes_through_the_class_logits_of_all_tokens(params):
    model, positions = Mask2Former(**SMALL), jnp.array([[7, 0, 125], [3, 3, 64]])

    def loss(params):
        out = model.apply(params, image(), scored_positions=positions)
        return sum(jnp.sum(x**2) for x in (out.selection.token_logits, out.class_logits, out.boxes))

    found = list(products(jax.make_jaxpr(jax.grad(loss))(params)))
    results = [equation.outvars[0].aval.shape for equation in found]
    operands = [x.aval.shape for equation in found for x in equation.invars]
    assert (2 * NUM_TOKENS, 5) in results, 'the class logits of all tokens have another shape'
    assert not {(2 * NUM_TOKENS, 5), (2, NUM_TOKENS, 5)} & set(operands)


@pytest.mark.parametrize('stop_gradient', [True, False])
def test_stop_gradient_cuts_the_layers_from_the_selected_queries(params, stop_gradient):
    model = Mask2Former(**SMALL, stop_gradient=stop_gradient)
    rest = params['params']
    selection = rest['query_prealignment']

    def sums(selection):
        """One weighted sum [L] of the logits of each decoder output."""
        params = {'params': rest | {'query_prealignment': selection}}
        logits = model.apply(params, image()).class_logits
        sets = logits.reshape(len(logits), -1)
        return sets @ jnp.sin(jnp.arange(sets.shape[1]))

    gradients = jax.jit(jax.jacrev(sums))(selection)
    changes = [
        any((leaf[number] != 0).any() for leaf in jax.tree.leaves(gradients))
        for number in range(SMALL['decoder_layers'] + 1)
    ]
    assert changes[0]
    assert set(changes[1:]) == {not stop_gradient}


def test_learned_queries_are_the_same_for_every_image():
    model = Mask2Former(**SMALL, queries='learned')

    @jax.jit
    def select():
        predictions, _ = model.init_with_output(jax.random.key(1), image())
        return predictions.selection

    selection = select()
    np.testing.assert_array_equal(selection.queries[0], selection.queries[1])
    np.testing.assert_array_equal(selection.positions, [range(6)] * 2)
    assert selection.token_logits.shape == (2, 0, 5)


def test_image_sides_must_be_multiples_of_the_stride():
    with pytest.raises(ValueError, match='multiples of 16, got 32x40'):
        Mask2Former(**SMALL).init(jax.random.key(1), image(shape=(1, 32, 40, 3)))


def test_an_unknown_query_source_is_an_error():
    with pytest.raises(ValueError, match="model.queries='random' is unknown"):
        Mask2Former(**SMALL, queries='random').init(jax.random.key(1), image())


@pytest.mark.slow
def test_rematerialization_changes_neither_parameters_nor_gradients(params):
    def gradients(rematerialize):
        model = Mask2Former(**SMALL, rematerialize=rematerialize)
        expected = jax.eval_shape(model.init, jax.random.key(0), image())
        assert jax.tree.structure(expected) == jax.tree.structure(params)

        def total(params):
            out = model.apply(params, image())
            return sum(jnp.sum(x**2) for x in (out.class_logits, out.boxes, out.mask_logits()))

        lowered = jax.jit(jax.grad(total)).lower(params)
        return lowered.as_text().count('optimization_barrier'), lowered.compile()(params)

    (no_barriers, plain), (barriers, again) = gradients(False), gradients(True)
    assert (
        barriers > no_barriers
    )  # Barriers keep XLA from merging the recomputation with the forward pass.
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
