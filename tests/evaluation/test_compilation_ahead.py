"""The shapes of an evaluation are compiled by threads while earlier ones are predicted."""

import threading
from contextlib import nullcontext

import evaluated
import jax
import pytest
from evaluated import SETTINGS, SIZES

from simcis_jax.data.evaluation_batches import plan_batches
from simcis_jax.evaluation.inference import BatchPredictor
from simcis_jax.runtime.compilation import shared


@pytest.fixture
def compiled():
    """The names of the threads that compiled a program, in order."""
    threads = []

    def listen(event, _, **__):
        if event == '/jax/core/compile/backend_compile_duration':
            threads.append(threading.current_thread().name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield threads
    jax.monitoring.unregister_event_duration_listener(listen)


def count_shapes():
    options = {name: SETTINGS[name] for name in ('batch_size', 'short_side', 'max_side')}
    plan = plan_batches(SIZES, range(len(SIZES)), **options)
    return len({b.padded for b in plan}), len({(b.padded, b.canvas) for b in plan})


def test_every_program_is_compiled_once_by_other_threads(compiled):
    shared.cache_clear()
    report, _ = evaluated.evaluate()
    in_threads = [name for name in compiled if name.startswith('ThreadPool')]
    assert len(in_threads) == sum(count_shapes())
    del compiled[:]
    assert evaluated.evaluate()[0] == report
    assert compiled == []


@pytest.mark.slow
def test_programs_compiled_ahead_give_the_results_of_those_that_are_not(monkeypatch):
    shared.cache_clear()
    report, _ = evaluated.evaluate()
    shared.cache_clear()
    monkeypatch.setattr(BatchPredictor, 'compiling_ahead', lambda *_: nullcontext())
    assert evaluated.evaluate()[0] == report


def test_after_an_error_nothing_is_left(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError('the disk is gone')

    shared.cache_clear()
    before = threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr('simcis_jax.evaluation.evaluator.load_batches', broken)
        with pytest.raises(RuntimeError, match='the disk is gone'):
            evaluated.evaluate()
    assert threading.active_count() == before
    evaluated.evaluate()  # What was cancelled is compiled now.
