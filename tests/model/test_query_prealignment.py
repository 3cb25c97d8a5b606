import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

from simcis_jax.model.prediction_heads import PredictionHeads
from simcis_jax.model.query_prealignment import QueryPrealignment, proposals, select_queries

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
