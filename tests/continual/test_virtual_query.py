"""The query bank against deques, and its sampling against the published weights."""

from collections import deque

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.continual import virtual_query

CLASSES, SLOTS, WIDTH = 5, 3, 2
push = jax.jit(virtual_query.enqueue)
draw = jax.jit(virtual_query.sample, static_argnums=3)


def query(number):
    return jnp.full((1, WIDTH), float(number))


def bank_with(labels, counts=None):
    """A bank with one query per label, whose features equal the label plus one."""
    bank = virtual_query.create(CLASSES, SLOTS, WIDTH)
    for label in labels:
        bank = push(bank, query(label + 1), jnp.array([label]))
    return bank if counts is None else bank.replace(counts=jnp.asarray(counts, jnp.float32))


def test_a_new_bank_is_empty():
    bank = virtual_query.create(CLASSES, SLOTS, WIDTH)
    assert bank.queries.shape == (CLASSES, SLOTS, WIDTH)
    assert not bank.written.any() and not bank.counts.any() and not bank.queries.any()


@pytest.mark.parametrize('call_size', [1, 4, 11])
def test_the_bank_equals_one_deque_per_class(call_size):
    rng = np.random.default_rng(call_size)
    bank = virtual_query.create(CLASSES, SLOTS, WIDTH)
    rings = [deque(maxlen=SLOTS) for _ in range(CLASSES)]
    written = np.zeros(CLASSES, int)
    for _ in range(12):
        # Classes of different frequency; of 11 queries, one class often gets more than 3 slots.
        labels = rng.choice(np.arange(-1, CLASSES), call_size, p=[0.2, 0.4, 0.2, 0.1, 0.1, 0.0])
        queries = rng.random((call_size, WIDTH)).astype(np.float32)
        bank = push(bank, queries, labels)
        for value, label in zip(queries, labels, strict=True):
            if label >= 0:
                rings[label].append(tuple(value))
                written[label] += 1
        np.testing.assert_array_equal(bank.written, written)
        for ring, stored in zip(rings, bank.queries, strict=True):
            assert set(map(tuple, np.asarray(stored)[: len(ring)])) == set(ring)
            assert not stored[len(ring) :].any()
    assert written.max() > SLOTS and written[4] == 0


def test_the_oldest_query_is_overwritten_first():
    bank = bank_with([])
    for values, labels in (([1.0, 2, 9], [0, 0, -1]), ([3.0, 4], [0, 2]), ([5.0], [0])):
        bank = push(bank, jnp.repeat(jnp.array(values)[:, None], WIDTH, 1), jnp.array(labels))
    np.testing.assert_array_equal(
        bank.queries[..., 0], [[5, 2, 3], [0, 0, 0], [4, 0, 0], [0, 0, 0], [0, 0, 0]]
    )


def test_stored_counts_queries_and_bytes():
    assert virtual_query.stored(bank_with([])) == (0, 2 * 4 * CLASSES)
    # Class 0 got more than its 3 slots.
    assert virtual_query.stored(bank_with([0, 0, 2, 0, 0])) == (4, 4 * WIDTH * 4 + 2 * 4 * CLASSES)


def test_storing_many_queries_at_once_equals_storing_them_one_by_one():
    rng = np.random.default_rng(0)
    queries = rng.random((40, WIDTH)).astype(np.float32)
    labels = rng.integers(-1, CLASSES, 40)
    at_once = one_by_one = bank_with([0, 3])
    at_once = push(at_once, queries, labels)
    for value, label in zip(queries, labels, strict=True):
        one_by_one = push(one_by_one, value[None], label[None])
    jax.tree.map(np.testing.assert_array_equal, at_once, one_by_one)


def test_no_two_queries_are_written_to_one_place():
    # Class 0 gets 5 and class 1 gets 3 queries at once, where each has 3 slots.
    labels = jnp.array([0, 1, 0, -1, 0, 1, 4, 0, -1, 1, 0])
    written = jnp.array([4, 1, 0, 0, 0])
    rows, slots = map(np.asarray, virtual_query.places(written, labels, SLOTS))
    kept = np.flatnonzero(rows < CLASSES)
    np.testing.assert_array_equal(kept, [1, 4, 5, 6, 7, 9, 10])
    np.testing.assert_array_equal(rows[kept], labels[kept])
    # Class 0 keeps its 7th, 8th and 9th query, class 1 its 2nd to 4th, class 4 its 1st.
    np.testing.assert_array_equal(slots[kept], [1, 0, 2, 0, 1, 0, 2])


def test_sampling_weights_equal_the_published_code():
    golden = golden_weights.load('train_t2_pan_100-10')
    past = np.arange(150) < 100
    weights = virtual_query.sampling_weights(golden['vq/psd_counts'], past, 0.5)
    np.testing.assert_allclose(weights[:100], golden['vq/sample_weights'], rtol=1e-6)
    assert not weights[100:].any()


def test_sampling_weights_follow_equation_9():
    weights = virtual_query.sampling_weights(
        jnp.array([3.0, 0, 99, 7]), jnp.array([True, True, False, True]), 0.5
    )
    np.testing.assert_allclose(weights, np.sqrt([13 / 4, 13, 0, 13 / 8]), rtol=1e-6)


ALL_PAST = jnp.ones(CLASSES, bool)


def test_sampled_queries_come_with_their_labels():
    bank = bank_with([0, 1, 2, 3, 4])
    queries, labels = draw(bank, jax.random.key(0), ALL_PAST, 100, alpha=0.5)
    np.testing.assert_array_equal(queries[:, 0], labels + 1)
    assert set(np.asarray(labels).tolist()) == {0, 1, 2, 3, 4}


def test_only_past_classes_with_stored_queries_are_sampled():
    past = jnp.array([True, True, False, True, False])
    queries, labels = draw(bank_with([1, 3, 4]), jax.random.key(0), past, 200, alpha=0.5)
    assert set(np.asarray(labels).tolist()) == {1, 3}
    assert (queries > 0).all()


def test_every_stored_query_is_sampled_and_no_empty_slot():
    bank = bank_with([])
    for number in (1, 2):
        bank = push(bank, query(number), jnp.array([0]))
    queries, _ = draw(bank, jax.random.key(0), ALL_PAST, 200, alpha=0.5)
    assert set(np.asarray(queries[:, 0]).tolist()) == {1, 2}
    for number in (3, 4, 5):  # Wraps around the ring buffer.
        bank = push(bank, query(number), jnp.array([0]))
    queries, _ = draw(bank, jax.random.key(0), ALL_PAST, 200, alpha=0.5)
    assert set(np.asarray(queries[:, 0]).tolist()) == {3, 4, 5}


@pytest.mark.parametrize('past', [[True] * 5, [False] * 5, [False, True, True, True, True]])
def test_labels_are_minus_one_if_nothing_is_stored(past):
    bank = bank_with([] if past[0] else [0])
    queries, labels = draw(bank, jax.random.key(0), jnp.array(past), 4, alpha=0.5)
    assert (labels == -1).all() and jnp.isfinite(queries).all()


def test_zero_virtual_queries_give_empty_arrays():
    queries, labels = draw(bank_with([0]), jax.random.key(0), ALL_PAST, 0, alpha=0.5)
    assert queries.shape == (0, WIDTH) and labels.shape == (0,)


@pytest.mark.parametrize('alpha', [0.0, 0.5, 1.0])
def test_classes_are_sampled_in_proportion_to_their_weights(alpha):
    counts = np.array([0, 3, 8, 24, 99])
    num_draws = 4000
    _, labels = draw(
        bank_with(range(5), counts), jax.random.key(1), ALL_PAST, num_draws, alpha=alpha
    )
    share = (1.0 / (counts + 1)) ** alpha
    expected = num_draws * share / share.sum()
    observed = np.bincount(labels, minlength=5)
    # Chi-square with 4 degrees of freedom exceeds 18.5 once in a thousand.
    assert ((observed - expected) ** 2 / expected).sum() < 18.5
    if alpha:
        assert (np.diff(observed) < 0).all()  # Rarer classes more often.


def test_different_keys_give_different_samples():
    bank = bank_with(range(5))
    first, second = (draw(bank, jax.random.key(i), ALL_PAST, 20, alpha=0.5)[1] for i in (0, 1))
    assert (first != second).any()
