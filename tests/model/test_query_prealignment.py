import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

from benchmarks import products
from simcis_jax.model.prediction_heads import PredictionHeads
from simcis_jax.model.query_prealignment import (
    QueryPrealignment,
    proposals,
    select_queries,
)

SHAPES = {'a': ((2, 3), (4, 6), (8, 12)), 'border': ((1, 14), (2, 28), (4, 56))}


@pytest.mark.parametrize('name, num_invalid', [('a', 0), ('border', 8)])
def test_proposals_equal_the_published_code(name, num_invalid):
    golden = golden_weights.load('components')
    logits, valid = proposals(SHAPES[name])
    np.testing.assert_allclose(logits, golden[f'proposals/{name}/logit'][0], rtol=1e-5, atol=1e-6)
    assert (~valid).sum() == num_invalid
    zeroed = (golden[f'proposals/{name}/memory_out'][0] == 0).all(axis=-1)
    np.testing.assert_array_equal(~valid, zeroed)


def test_tokens_with_the_highest_class_logit_are_selected_best_first():
    logits = jnp.array([[[0.0, -9.0], [1.0, 3.0], [2.0, 0.0], [-5.0, -5.0]]])
    np.testing.assert_array_equal(select_queries(logits, 3), [[1, 2, 0]])


def test_prototypes_of_unseen_classes_do_not_select():
    # Most logits are negative, so a masked one must not count as 0 either.
    logits = jnp.array([[[-3.0, 5.0], [1.0, 3.0], [2.0, 0.0], [-1.0, -5.0]]])
    seen = jnp.array([True, False])
    np.testing.assert_array_equal(select_queries(logits, 3, seen), [[2, 1, 3]])


def test_more_queries_than_tokens_is_an_error():
    with pytest.raises(ValueError, match='model.num_queries=5 is more than the 4 positions'):
        select_queries(jnp.zeros((1, 4, 2)), 5)


def test_tokens_without_a_valid_proposal_score_like_zero_tokens():
    shapes = SHAPES['border']
    _, valid = proposals(shapes)
    selection = QueryPrealignment(PredictionHeads(3, 8))
    tokens = jax.random.normal(jax.random.key(0), (1, len(valid), 8))
    params = random_params(lambda *args: selection.init(*args, shapes), tokens)
    of_tokens = selection.apply(params, tokens, shapes).class_logits[0]
    of_zeros = selection.apply(params, jnp.zeros_like(tokens), shapes).class_logits[0]
    same = np.isclose(of_tokens, of_zeros, atol=1e-6).all(axis=-1)
    np.testing.assert_array_equal(same, ~valid)


def test_gradients_of_a_few_tokens_are_right_and_do_not_pass_through_all_tokens():
    shapes = SHAPES['a']
    heads = PredictionHeads(3, 8)
    selection = QueryPrealignment(heads)
    num_tokens = sum(h * w for h, w in shapes)
    tokens = jax.random.normal(jax.random.key(0), (2, num_tokens, 8))
    positions = jnp.array([[5, 0, 77], [9, 9, 31]])

    def loss_of_few(module, tokens):
        candidates = module(tokens, shapes)
        queries, boxes = module.queries_at(candidates, positions)
        return (queries**3).sum() + boxes.sum() + module.logits_at(candidates, positions).sum()

    def loss_of_all(module, tokens):
        features = module.features(tokens)
        take = jax.vmap(lambda rows, index: rows[index])
        boxes = jax.nn.sigmoid(module.heads.box_head(features) + proposals(shapes)[0])
        logits = module.heads.classify(features)
        queries, boxes, logits = (take(x, positions) for x in (features, boxes, logits))
        return (queries**3).sum() + boxes.sum() + logits.sum()

    params = random_params(lambda *args: selection.init(*args, method=loss_of_all), tokens)
    few, every = (
        jax.value_and_grad(lambda *args, loss=loss: selection.apply(*args, method=loss), (0, 1))
        for loss in (loss_of_few, loss_of_all)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        few(params, tokens),
        every(params, tokens),
    )
    # All tokens are scored, without gradient, by two products.
    flop = products.count(jax.make_jaxpr(few)(params, tokens).jaxpr)
    score = 2 * 2 * num_tokens * 8 * (8 + 3)
    of_few = products.count(jax.make_jaxpr(every)(params, tokens).jaxpr) * 3 / num_tokens
    assert flop < score + 1.5 * of_few
