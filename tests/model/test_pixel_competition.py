import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traced import lookup_sizes

from simcis_jax.model import pixel_competition
from simcis_jax.model.pixel_competition import NOBODY, compete

RNG = np.random.default_rng(0)
CHOSEN = np.arange(9) % 4 != 1
# Query 0 wins nothing; query 5 wins pixels though it is not chosen.
WINNER = RNG.choice([NOBODY, 5, *np.flatnonzero(CHOSEN)[1:]], (31, 47)).astype(np.int32)
NOWHERE = np.full((3, 5), NOBODY, np.int32)


def test_winners_are_those_of_a_loop_over_pixels():
    scores = RNG.random(9).astype(np.float32)
    masks = np.round(RNG.random((9, 31, 47)), 1).astype(np.float32)  # With ties.
    masks[:, :2] = 0
    scores[[2, 3]] = 0.5

    def mask_of(query):
        return jnp.asarray(masks)[query], jnp.asarray(masks)[query] >= 0.5

    for least in (0.0, -1.0):
        winner, inside, areas = jax.jit(
            lambda chosen, scores, least=least: compete(
                chosen, scores, mask_of, (31, 47), more_than=least
            )
        )(CHOSEN, scores)
        weighted = np.where(CHOSEN[:, None, None], scores[:, None, None] * masks, -2)
        expected = np.where(weighted.max(axis=0) > least, weighted.argmax(axis=0), NOBODY)
        np.testing.assert_array_equal(winner, expected)
        of_winner = np.take_along_axis(masks, np.maximum(expected, 0)[None], axis=0)[0]
        np.testing.assert_array_equal(inside, (expected != NOBODY) & (of_winner >= 0.5))
        counts = (masks >= 0.5).sum(axis=(1, 2))
        np.testing.assert_array_equal(areas, np.where(CHOSEN, counts, 0))


@pytest.mark.parametrize(
    'count', [pixel_competition._histogram, pixel_competition._count_one_by_one]
)
def test_won_pixels_are_counted_alike_on_all_platforms(count):
    counts = jax.jit(count)(WINNER, CHOSEN)
    assert counts.dtype == np.int32
    won = (np.arange(9)[:, None, None] == WINNER).sum(axis=(1, 2))
    np.testing.assert_array_equal(counts, np.where(CHOSEN, won, 0))
    np.testing.assert_array_equal(jax.jit(count)(NOWHERE, CHOSEN), np.zeros(9))
    np.testing.assert_array_equal(jax.jit(count)(NOWHERE, np.zeros(9, bool)), np.zeros(9))


@pytest.mark.parametrize('find', [pixel_competition._look_up, pixel_competition._fill_one_by_one])
def test_values_of_winners_are_alike_on_all_platforms(find):
    values = RNG.integers(0, 1000, 9).astype(np.int32)
    found = jax.jit(find)(values, WINNER, CHOSEN, np.int32(-7))
    assert found.dtype == np.int32
    is_chosen = (WINNER != NOBODY) & CHOSEN[WINNER]
    np.testing.assert_array_equal(found, np.where(is_chosen, values[WINNER], -7))
    np.testing.assert_array_equal(jax.jit(find)(values, NOWHERE, CHOSEN, np.int32(3)), 3)


def test_no_pixel_is_looked_up_on_tpu():
    arguments = np.arange(9), WINNER, CHOSEN, 0
    find = pixel_competition.values_of_winners
    assert max(lookup_sizes(find, arguments, 'cpu')) == WINNER.size
    assert max(lookup_sizes(find, arguments, 'tpu')) <= len(CHOSEN)
