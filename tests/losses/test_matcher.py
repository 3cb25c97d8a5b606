"""Costs against the published code and loops; the assignment against SciPy."""

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from simcis_jax.losses.boxes import generalized_iou
from simcis_jax.losses.classification import class_cost
from simcis_jax.losses.masks import dice_cost, mask_cost
from simcis_jax.losses.matcher import match
from simcis_jax.losses.point_sampling import sample_features

match_many = jax.jit(jax.vmap(match))
assign = jax.jit(match)
NUM_PROBLEMS = 100


def unpacked(bits):
    return np.unpackbits(bits, axis=-1).astype(bool)


def random_valid(rng, num_targets):
    """From none to all targets valid, at any positions."""
    share = rng.random((NUM_PROBLEMS, 1))
    return rng.random((NUM_PROBLEMS, num_targets)) < share * 1.2


def assert_cheapest(costs, valid, rtol=1e-5):
    """The assignments are one-to-one and have the lowest cost over valid targets."""
    assigned, num_nonfinite = map(np.asarray, match_many(costs, valid))
    assert not num_nonfinite.any()
    for cost, real, queries in zip(costs.astype(np.float64), valid, assigned, strict=True):
        assert len(set(queries)) == len(queries) and queries.min() >= 0
        assert queries.max() < len(cost)
        targets = np.flatnonzero(real)
        rows, columns = linear_sum_assignment(cost[:, targets])
        best = cost[rows, targets[columns]].sum()
        scale = np.abs(cost - cost.min()).max() + 1e-9
        assert cost[queries[targets], targets].sum() <= best + rtol * scale


@pytest.mark.parametrize('shape', [(12, 12), (20, 7)])
def test_assignment_is_as_cheap_as_scipys(shape):
    rng = np.random.default_rng(0)
    costs = rng.normal(size=(NUM_PROBLEMS, *shape)).astype(np.float32) * 20
    assert_cheapest(costs, random_valid(rng, shape[1]))


@pytest.mark.parametrize('high', [1, 2, 4, 30])
def test_integer_costs_with_ties_are_solved_exactly(high):
    rng = np.random.default_rng(high)
    costs = rng.integers(0, high, (NUM_PROBLEMS, 12, 12)).astype(np.float32)
    assert_cheapest(costs, random_valid(rng, 12), rtol=0)


@pytest.mark.parametrize('offset', [1e4, -1e4, 1e6])
def test_small_differences_between_large_costs_decide(offset):
    rng = np.random.default_rng(3)
    # Float32 resolves 0.001 at 1e4 and 0.06 at 1e6; these differences must decide.
    costs = (offset + rng.random((NUM_PROBLEMS, 12, 12))).astype(np.float32)
    assert_cheapest(costs, random_valid(rng, 12))


def test_costs_of_very_different_magnitude_are_solved():
    rng = np.random.default_rng(4)
    costs = (10 ** rng.uniform(-2, 4, (NUM_PROBLEMS, 12, 12))).astype(np.float32)
    assert_cheapest(costs, random_valid(rng, 12))


def test_nonfinite_costs_are_avoided_among_equal_large_costs():
    cost = np.full((12, 12), 1e8, np.float32)
    cost[~np.roll(np.eye(12, dtype=bool), 1, axis=0)] = np.nan  # One assignment is left.
    queries, num_nonfinite = assign(cost, np.ones(12, bool))
    np.testing.assert_array_equal(queries, (np.arange(12) + 1) % 12)
    assert num_nonfinite == 132


@pytest.mark.parametrize('offset', [0, 1e8])
@pytest.mark.parametrize('bad', [np.inf, -np.inf, np.nan])
def test_nonfinite_costs_are_chosen_only_where_no_finite_one_is_left(bad, offset):
    rng = np.random.default_rng(6)
    costs = (rng.normal(size=(NUM_PROBLEMS, 12, 12)) * 20 + offset).astype(np.float32)
    broken = rng.random(costs.shape) < rng.random((NUM_PROBLEMS, 1, 1))
    costs[broken] = bad
    valid = random_valid(rng, 12)
    assigned, num_nonfinite = map(np.asarray, match_many(costs, valid))
    np.testing.assert_array_equal(num_nonfinite, (broken & valid[:, None, :]).sum(axis=(1, 2)))
    num_forced = 0
    for cost, bad_cost, real, queries in zip(costs, broken, valid, assigned, strict=True):
        assert len(set(queries)) == 12
        targets = np.flatnonzero(real)
        priced = np.where(bad_cost, 1e4, cost.astype(np.float64) - offset)[:, targets]
        best = priced[linear_sum_assignment(priced)].sum()
        np.testing.assert_allclose(
            priced[queries[targets], np.arange(len(targets))].sum(), best, rtol=1e-5, atol=1e-3
        )
        num_forced += best > 5e3
    assert 10 < num_forced < 90


@pytest.mark.parametrize('bad', [np.inf, -np.inf, np.nan])
def test_every_target_gets_a_query_even_if_all_costs_are_nonfinite(bad):
    queries, num_nonfinite = assign(jnp.full((5, 3), bad), jnp.array([True, True, False]))
    assert len(set(np.asarray(queries).tolist()) & set(range(5))) == 3
    assert num_nonfinite == 10


def test_costs_of_padding_are_ignored():
    rng = np.random.default_rng(7)
    cost = rng.random((6, 6)).astype(np.float32)
    valid = np.array([True, True, True, False, False, False])
    expected, _ = assign(cost, valid)
    for junk in (np.nan, np.inf, -1e30, 0.0):
        queries, num_nonfinite = assign(np.where(valid, cost, junk), valid)
        np.testing.assert_array_equal(queries[:3], expected[:3])
        assert sorted(np.asarray(queries)) == list(range(6)) and num_nonfinite == 0


def test_without_valid_targets_the_assignment_is_one_to_one():
    queries, num_nonfinite = assign(jnp.full((4, 3), jnp.nan), jnp.zeros(3, bool))
    assert len(set(np.asarray(queries).tolist()) & set(range(4))) == 3
    assert num_nonfinite == 0


def test_costs_at_the_limits_of_float32_are_assigned_one_to_one():
    cost = jnp.array([[3e38, -3e38], [-3e38, 3e38]], jnp.float32)
    queries, _ = assign(cost, jnp.array([True, True]))
    np.testing.assert_array_equal(queries, [1, 0])


def test_one_target_gets_the_cheapest_query():
    queries, _ = assign(jnp.array([[3.0], [1.0], [2.0]]), jnp.array([True]))
    assert queries.tolist() == [1]


@pytest.mark.parametrize('shape', [(5, 12), (1, 7), (11, 12)])
def test_more_targets_than_queries_are_assigned_as_by_scipy(shape):
    rng = np.random.default_rng(9)
    costs = rng.normal(size=(NUM_PROBLEMS, *shape)).astype(np.float32) * 20
    valid = random_valid(rng, shape[1])
    assert {real.sum() > shape[0] for real in valid} == {True, False}
    assigned, _ = map(np.asarray, match_many(costs, valid))
    for cost, real, queries in zip(costs, valid, assigned, strict=True):
        targets = np.flatnonzero(real)
        expected = np.full(shape[1], -1)
        rows, columns = linear_sum_assignment(cost[:, targets])
        expected[targets[columns]] = rows
        np.testing.assert_array_equal(queries, expected)


@pytest.mark.parametrize('bad', [np.inf, -np.inf, np.nan])
def test_of_more_targets_than_queries_those_with_finite_costs_are_chosen(bad):
    cost = np.full((2, 5), bad, np.float32)
    cost[0, 3], cost[1, 1], cost[1, 3] = 7.0, 5.0, 1.0
    queries, num_nonfinite = assign(cost, np.array([True, True, True, True, False]))
    np.testing.assert_array_equal(queries, [-1, 1, -1, 0, -1])
    assert num_nonfinite == 5


def test_assignment_of_published_costs_equals_the_published_code():
    golden = golden_weights.load('train_t1_pan')
    keys = [key for key in golden if key.startswith('cost/')]
    assert len(keys) == 22
    for key in keys:
        cost, (rows, columns) = golden[key], golden[key.replace('cost', 'assign')]
        padded = np.pad(cost, ((0, 0), (0, 10 - cost.shape[1])))
        queries, _ = assign(padded, np.arange(10) < cost.shape[1])
        np.testing.assert_array_equal(queries[columns], rows, err_msg=key)


@pytest.fixture
def components():
    golden = golden_weights.load('components')
    masks = unpacked(golden['match/tgt_masks_packed']).astype(np.float32)
    points = golden['match/points'][0]
    golden['truth'] = sample_features(np.moveaxis(masks, 0, -1), points)
    golden['sampled'] = sample_features(np.moveaxis(golden['match/masks'][0], 0, -1), points)
    return golden


def test_class_cost_equals_the_published_code(components):
    cost = class_cost(components['match/logits'][0], components['match/tgt_labels'])
    np.testing.assert_allclose(cost, components['match/cost_class'], rtol=1e-5, atol=1e-6)


def test_mask_cost_equals_the_published_code(components):
    cost = mask_cost(components['sampled'], components['truth'])
    np.testing.assert_allclose(cost, components['match/cost_bce'], rtol=1e-5, atol=1e-6)


def test_dice_cost_equals_the_published_code(components):
    cost = dice_cost(components['sampled'], components['truth'])
    np.testing.assert_allclose(cost, components['match/cost_dice'], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name, classification', [('pan', 4.0), ('sem', 2.0)])
def test_weighted_costs_and_their_assignment_equal_the_published_code(
    components, name, classification
):
    boxes, truth = components['match/boxes'][0][:, None], components['match/tgt_boxes']
    cost = (
        classification * class_cost(components['match/logits'][0], components['match/tgt_labels'])
        + 5 * mask_cost(components['sampled'], components['truth'])
        + 5 * dice_cost(components['sampled'], components['truth'])
        + 5 * jnp.abs(boxes - truth).sum(axis=-1)
        - 2 * generalized_iou(boxes, truth)
    )
    np.testing.assert_allclose(cost, components[f'match/{name}_cost'], rtol=1e-5, atol=1e-5)
    rows, columns = components[f'match/{name}_assign']
    np.testing.assert_array_equal(assign(cost, jnp.ones(4, bool))[0][columns], rows)


def test_costs_equal_plain_loops():
    rng = np.random.default_rng(8)
    logits, labels = rng.normal(size=(4, 6)) * 3, np.array([5, 0, 5])
    masks, truth = rng.normal(size=(4, 9)) * 5, rng.random((3, 9))
    expected = np.zeros((3, 4, 3))
    for q in range(4):
        for t in range(3):
            p = 1 / (1 + np.exp(-logits[q, labels[t]]))
            expected[0, q, t] = -0.25 * (1 - p) ** 2 * np.log(p) + 0.75 * p**2 * np.log(1 - p)
            p = 1 / (1 + np.exp(-masks[q]))
            entropies = -(truth[t] * np.log(p) + (1 - truth[t]) * np.log(1 - p))
            expected[1, q, t] = sum(entropies) / 9
            share = (2 * sum(p * truth[t]) + 1) / (sum(p) + sum(truth[t]) + 1)
            expected[2, q, t] = 1 - share
    costs = class_cost(logits, labels), mask_cost(masks.T, truth.T), dice_cost(masks.T, truth.T)
    np.testing.assert_allclose(jnp.stack(costs), expected, rtol=1e-4, atol=1e-5)
