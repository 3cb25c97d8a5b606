"""Forgetting, against numbers by hand and the evaluation."""

import numpy as np
import pytest

from simcis_jax.continual.stages import make_stages
from simcis_jax.evaluation.panoptic_quality import PQCounts, pq_scores
from simcis_jax.reporting import statistics


def reports_of(*tables, first=1):
    return [
        {'stage': stage, 'per_class': {name: {'pq': pq} for name, pq in table.items()}}
        for stage, table in enumerate(tables, first)
    ]


THREE_STAGES = reports_of(
    {'sky': 80.0, 'tree': 40.0, 'absent': None},
    {'sky': 70.0, 'tree': 20.0, 'absent': None, 'car': 50.0},
    {'sky': 75.0, 'tree': 0.0, 'absent': None, 'car': 60.0, 'dog': 30.0},
)


def test_the_matrix_holds_each_group_after_each_stage():
    groups = statistics.groups_by_first_report(THREE_STAGES)
    assert [(g.stages, g.names) for g in groups] == [
        ('1', ('sky', 'tree', 'absent')), ('2', ('car',)), ('3', ('dog',)),
    ]  # fmt: skip
    matrix = statistics.forgetting_matrix(THREE_STAGES, groups, 'pq')
    assert matrix == [[60.0, 45.0, 37.5], [None, 50.0, 60.0], [None, None, 30.0]]
    assert statistics.changes(matrix, groups) == [-22.5, 10.0, None]


def test_a_run_that_started_from_a_later_stage_has_one_group_for_known_classes():
    groups = statistics.groups_by_first_report(
        reports_of({'sky': 1.0}, {'sky': 1.0, 'car': 2.0}, first=3)
    )
    assert [(g.stages, g.names) for g in groups] == [('1-3', ('sky',)), ('4', ('car',))]


def test_classes_are_sorted_by_decline_and_those_without_scores_left_out():
    found = statistics.class_changes(
        THREE_STAGES, statistics.groups_by_first_report(THREE_STAGES), 'pq'
    )
    assert [(c.name, c.learned, c.last, c.change) for c in found] == [
        ('tree', 40.0, 0.0, -40.0), ('sky', 80.0, 75.0, -5.0), ('car', 50.0, 60.0, 10.0),
        ('dog', 30.0, 30.0, None),
    ]  # fmt: skip
    assert [c.is_new for c in found] == [False, False, False, True]


def test_the_matrix_agrees_with_the_groups_of_the_evaluation():
    rng, num_classes = np.random.default_rng(0), 7
    stages = make_stages(num_classes, base=3, increment=2, order='descending')
    all_counts, reports = [], []
    for stage in stages:
        tp, fp, fn = rng.integers(0, 3, (3, num_classes))
        all_counts.append(PQCounts(tp, fp, fn, iou=tp * rng.uniform(0.5, 1.0, num_classes)))
        scores = all_counts[-1].per_class()['pq']
        per_class = {str(c): {'pq': None if np.isnan(scores[c]) else scores[c]} for c in stage.seen}
        reports.append({'stage': stage.number, 'per_class': per_class})
    matrix = statistics.forgetting_matrix(reports, statistics.groups_by_first_report(reports), 'pq')
    for i, stage in enumerate(stages):
        for j, counts in enumerate(all_counts[i:], start=i):
            assert matrix[i][j] == pytest.approx(pq_scores(counts, stage.current)['pq'])
