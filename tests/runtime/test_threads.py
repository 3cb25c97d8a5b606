"""Work ahead of its use: order, and how far ahead."""

import pytest

from simcis_jax.runtime.threads import one_ahead


@pytest.mark.parametrize('count', range(4))
def test_the_next_item_is_started_before_a_result_is_given_out(count):
    started = []

    def start(item):
        started.append(item)
        return item * 10

    for number, (item, result) in enumerate(one_ahead(start, iter(range(count)))):
        assert (item, result) == (number, number * 10)
        assert started == list(range(min(number + 2, count)))
    assert started == list(range(count))
