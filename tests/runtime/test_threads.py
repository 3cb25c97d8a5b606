"""Work ahead of its use: order, how far ahead, and its end."""

import threading

import pytest

from simcis_jax.runtime.threads import map_ahead, one_ahead


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


def test_closing_ends_the_threads_and_starts_no_waiting_item():
    before, started, go_on = threading.active_count(), [], threading.Event()

    def work(item):
        started.append(item)
        return item == 0 or go_on.wait(60)

    results = map_ahead(work, range(100), num_threads=2)
    assert next(results)
    timer = threading.Timer(0.2, go_on.set)
    timer.start()
    results.close()
    timer.join()
    assert threading.active_count() == before
    assert len(started) <= 3  # One per thread after the first.
