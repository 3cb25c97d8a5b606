"""The kernels for TPU, emulated, against a gather in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.model.deformable_sampling.gather import sample_by_gather
from simcis_jax.model.deformable_sampling.pallas import groups_read, sample_by_pallas

CASES = {
    'one position': (((1, 1),), 1, 1),
    'odd sizes, a partial tile': (((5, 7), (9, 13), (3, 3)), 37, 2),
    'rows in groups, two tiles': (((20, 20), (7, 40)), 150, 2),
    'rows wider than the matrix unit': (((2, 170), (3, 131)), 9, 3),
}


def inputs(shapes, num_queries, num_points, batch=2, heads=2, dim=4):
    rng = np.random.default_rng(0)
    points = batch, num_queries, heads, len(shapes), num_points
    # Multiples of a power of two, so that float32 represents their pixels exactly.
    locations = rng.integers(-1000, 5000, (*points, 2)).astype(np.float32) / 2**12
    value = rng.normal(size=(batch, sum(h * w for h, w in shapes), heads, dim)).astype(np.float32)
    weights = rng.uniform(size=points).astype(np.float32)
    return value, locations, weights, rng.normal(size=(batch, num_queries, heads, dim))


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_gradients(sample, shapes, value, locations, weights, to_out):
    def total(*arguments):
        out = sample(arguments[0], shapes, *arguments[1:])
        return (out.astype(to_out.dtype) * to_out).sum(), out

    gradients, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(value, locations, weights)
    return out, *gradients


def largest_errors(case, dtype):
    """Of the values and of the gradients, relative to the largest number of each array."""
    shapes, *sizes = CASES[case]
    value, *points, to_out = inputs(shapes, *sizes)
    value = np.asarray(jnp.asarray(value, dtype).astype(jnp.float32))  # Representable.
    with jax.enable_x64(True):
        exact = [np.float64(x) for x in (value, *points, to_out)]
        expected = value_and_gradients(sample_by_gather, shapes, *exact)
    emulated = functools.partial(sample_by_pallas, interpret=True)
    actual = value_and_gradients(
        emulated, shapes, jnp.asarray(value, dtype), *points, np.float32(to_out)
    )
    return [
        np.abs(np.asarray(a, np.float64) - e).max() / np.abs(e).max()
        for a, e in zip(actual, map(np.asarray, expected), strict=True)
    ]


@pytest.mark.parametrize('case', CASES)
def test_float32_equals_float64(case):
    assert max(largest_errors(case, jnp.float32)) < 1e-5


def test_bfloat16_is_near_float64():
    assert max(largest_errors('odd sizes, a partial tile', jnp.bfloat16)) < 2e-2


def test_a_tile_skips_all_rows_that_its_points_do_not_read():
    y = np.full((1, 128), 5.0)  # A point on a row reads it and, with weight 0, the next one.
    assert groups_read(((100, 100),), jnp.asarray(y)).tolist() == [[5, 7]]
    y[0, :3] = -1, 98.5, 200  # Two of them are outside.
    assert groups_read(((100, 100),), jnp.asarray(y)).tolist() == [[5, 100]]
    # Of a map that is 20 wide, groups hold five rows.
    assert groups_read(((20, 20),), jnp.asarray(np.full((1, 128), 9.5))).tolist() == [[1, 3]]
    assert groups_read(((20, 20),), jnp.asarray(np.full((1, 128), 30.0))).tolist() == [[0, 0]]


def test_points_that_are_not_numbers_are_not_skipped():
    shapes, *sizes = CASES['one position']
    value, locations, weights, _ = inputs(shapes, *sizes)
    for place in (locations, weights):
        place[:] = np.nan
        out = sample_by_pallas(value, shapes, locations, weights, interpret=True)
        assert np.isnan(out).all()
