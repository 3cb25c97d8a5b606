"""The assignment solver against SciPy, and how much work it does."""

import jax
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from simcis_jax.losses.assignment import NONE, assign

assign_all = jax.jit(jax.vmap(assign))


def random_costs(rng, shape):
    return rng.normal(size=shape)


def clustered_costs(rng, shape):
    """All rows want the same columns, so that searches are as long as they get."""
    return rng.normal(size=(shape[0], 1, shape[2])) + 0.05 * rng.normal(size=shape)


def tied_costs(rng, shape):
    return rng.integers(0, 3, shape)


def equal_rows(rng, shape):
    return np.broadcast_to(rng.normal(size=(shape[0], 1, shape[2])), shape)


def count_batch_passes(num_passes):
    """Passes [B, M] of a batch: its problems search for their k-th row together."""
    return num_passes.max(axis=0).sum()


@pytest.mark.parametrize('make', [random_costs, clustered_costs, tied_costs, equal_rows])
@pytest.mark.parametrize('shape', [(1, 1), (1, 9), (3, 3), (7, 20), (12, 12), (20, 100)])
def test_no_assignment_is_cheaper(make, shape):
    rng = np.random.default_rng(shape)
    costs = make(rng, (200, *shape)).astype(np.float32)
    num_rows = rng.integers(0, shape[0] + 1, len(costs))
    num_rows[:2] = 0, shape[0]
    columns, _ = map(np.asarray, assign_all(costs, num_rows))
    for cost, count, found in zip(costs.astype(np.float64), num_rows, columns, strict=True):
        assert (found[count:] == NONE).all()
        assert len(set(found[:count])) == count and (found[:count] >= 0).all()
        best = cost[linear_sum_assignment(cost[:count])].sum()
        assert cost[np.arange(count), found[:count]].sum() <= best + 1e-5 * count


@pytest.mark.parametrize(('make', 'most'), [(random_costs, 80), (clustered_costs, 210)])
def test_rows_that_are_not_there_need_no_pass(make, most):
    """Ten decoder outputs of eight images with 20 of 100 slots filled."""
    costs = make(np.random.default_rng(0), (80, 100, 100)).astype(np.float32)
    _, num_passes = assign_all(costs, np.full(80, 20))
    assert 20 <= count_batch_passes(np.asarray(num_passes)) <= most
    assert not np.asarray(num_passes)[:, 20:].any()


def test_what_is_not_there_is_not_read():
    costs = np.random.default_rng(0).normal(size=(1, 6, 8)).astype(np.float32)
    columns, _ = assign_all(costs, np.array([4]))
    costs[:, 4:] = np.nan
    np.testing.assert_array_equal(assign_all(costs, np.array([4]))[0], columns)
