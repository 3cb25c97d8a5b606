"""The table of a query bank, against a loop and by hand."""

import math

import numpy as np
import pytest

from simcis_jax.continual import bank_table


def test_bank_statistics_agree_with_a_loop():
    rng = np.random.default_rng(1)
    queries = rng.normal(size=(5, 4, 3)).astype(np.float32)
    written = np.array(
        [2, 0, 9, 4, 1]
    )  # Class 1 is empty; class 2 has overwritten its ring buffer.
    found = bank_table.stored_classes(queries, written, num_nearest=2)
    assert [(c.label, c.num_entries) for c in found] == [(0, 2), (2, 4), (3, 4), (4, 1)]
    means = {}
    for c in found:
        entries = [[float(x) for x in queries[c.label, k]] for k in range(c.num_entries)]
        means[c.label] = [sum(column) / len(entries) for column in zip(*entries, strict=True)]
        spread = sum(math.dist(entry, means[c.label]) for entry in entries) / len(entries)
        assert c.spread == pytest.approx(spread, abs=1e-6)
    for c in found:
        others = {k: math.dist(means[c.label], means[k]) for k in means if k != c.label}
        nearest = sorted(others.items(), key=lambda item: item[1])[:2]
        assert [label for label, _ in c.nearest] == [label for label, _ in nearest]
        np.testing.assert_allclose([d for _, d in c.nearest], [d for _, d in nearest], rtol=1e-6)


def test_a_bank_of_one_class_has_no_neighbours_and_an_empty_one_no_classes():
    queries = np.ones((2, 3, 4), np.float32)
    (only,) = bank_table.stored_classes(queries, np.array([0, 1]))
    assert (only.label, only.spread, only.nearest) == (1, 0.0, ())
    assert bank_table.stored_classes(queries, np.zeros(2, int)) == []


def test_the_least_separated_classes_come_first():
    queries = np.zeros((4, 2, 1), np.float32)
    queries[:, :, 0] = [[0, 2], [100, 104], [3, 3], [0, 0]]  # The last class stores nothing.
    bank = {'queries': queries, 'written': [2, 7, 1, 0], 'counts': [5.0, 0.0, 2.0, 9.0]}
    table = bank_table.make_table(bank, ['a', 'b', 'c', 'd'])
    assert table.title == 'Query bank' and len(table.columns) == 6
    assert table.rows == [
        ('a', '2 of 2', '5', '1.00', '2.00', 'c 2.00, b 101.00'),
        ('b', '2 of 2', '0', '2.00', '49.50', 'c 99.00, a 101.00'),
        ('c', '1 of 2', '2', '0.00', '–', 'a 2.00, b 99.00'),
    ]
