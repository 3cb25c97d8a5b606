"""Queries that claim the same segment: against loops, and on the model of a finished run."""

import numpy as np

from experiments import duplicates, features


def test_claims_against_a_loop():
    probabilities = np.random.default_rng(0).uniform(0, 0.3, (7, 4))
    labels = [2, 0, 2, 3]
    found = duplicates.claims(probabilities, labels, classes=[0, 1, 2])
    assert sorted(found) == [0, 2]  # Class 1 has no segment, and class 3 is not counted.
    for label, segments in ((0, 1), (2, 2)):
        claiming = [row[label] for row in probabilities if row[label] > 0.1]
        assert 0 < len(claiming) < 7
        assert found[label] == (len(claiming) / segments, max(claiming))


def test_seeds_of_a_variant_are_pooled(run, tmp_path):
    once = duplicates.measure(run, features.validation_examples(run, duplicates.NUM_IMAGES))
    twice = duplicates.analyze([run, run], {run.folder: {}}, tmp_path)
    assert set(once) == {'things', 'stuff'} and len(once['stuff']) > 0
    for pairs in once.values():
        assert (pairs[:, 0] >= 0).all() and ((pairs[:, 1] > 0) & (pairs[:, 1] < 1)).all()
    assert twice == duplicates.table(run, {'SimCIS': once})
    assert duplicates.analyze([run], {}, tmp_path) == ''


def test_the_table_has_means_and_shares(run):
    measured = {
        'things': np.zeros((0, 2)),
        'stuff': np.array([(1.0, 0.2), (4.0, 0.9), (2.0, 0.31), (2.0, 0.59)]),
    }
    text = duplicates.table(run, {'SimCIS': measured})
    assert 'stuff: above 0.3' in text and '| SimCIS | - | - | - | 2.2 | 0.50 | 75 % |' in text
