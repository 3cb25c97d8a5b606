"""Recall that classes keep through a stage, against a loop over classes and stages."""

import math

import numpy as np
import pytest

from experiments import command, forgetting


def stage(**classes):
    return {'per_class': {name: {'tp': tp, 'fn': fn} for name, (tp, fn) in classes.items()}}


RESULTS = {
    'stages': [
        stage(sky=(10, 0), tree=(5, 5), fish=(0, 4), car=(0, 0)),
        stage(sky=(10, 0), tree=(3, 7), fish=(1, 3), car=(0, 0), dog=(1, 9)),
        stage(sky=(9, 1), tree=(0, 10), fish=(1, 3), car=(0, 0), dog=(2, 8)),
    ]
}


def test_recall_pairs_leave_out_classes_without_recall_before():
    pairs = forgetting.recall_pairs(RESULTS)
    assert sorted(map(tuple, pairs)) == [
        (10, 20), (25, 25), (30, 0), (50, 30), (100, 90), (100, 100)
    ]  # fmt: skip


def test_a_run_of_one_stage_has_no_recall_pairs():
    assert forgetting.recall_pairs({'stages': RESULTS['stages'][:1]}).shape == (0, 2)


def test_groups_against_a_loop():
    pairs = np.random.default_rng(0).uniform(0.1, 100, (60, 2))
    pairs = np.concatenate([pairs[pairs[:, 0] > 20], [[40.0, 10.0], [100.0, 70.0]]])
    expected = []
    for low, high in zip(forgetting.EDGES, forgetting.EDGES[1:], strict=False):
        group = [(before, after) for before, after in pairs if low < before <= high]
        before, after = sum(b for b, _ in group), sum(a for _, a in group)
        expected.append(
            (len(group), before / len(group), 100 * after / before)
            if group
            else (0, math.nan, math.nan)
        )
    assert expected[0][0] == 0 and min(count for count, _, _ in expected[1:]) > 0
    for found, wanted in zip(forgetting.kept(pairs), expected, strict=True):
        assert found == pytest.approx(wanted, nan_ok=True)


def test_table_and_figure_show_every_group_that_is_not_empty():
    summaries = {'SimCIS': forgetting.kept(forgetting.recall_pairs(RESULTS))}
    assert '| SimCIS | 200 (1) | 45 (2) | 60 (1) | - | - | 95 (2) |' in forgetting.table(
        'shapes', summaries
    )
    (line,) = forgetting.draw(summaries).axes[0].lines
    np.testing.assert_allclose(
        line.get_xydata(), [(10, 200), (27.5, 100 * 25 / 55), (50, 60), (100, 95)]
    )


def test_the_analysis_covers_panoptic_runs_only(tmp_path):
    arguments = ['--data=shapes', f'--workdir={tmp_path}', '--seeds=0,1', '--variants=SimCIS']
    runs = command.make_plan(forgetting.EXPERIMENT, arguments).runs
    panoptic = {'stages': [report | {'pq': {'all': 1.0}} for report in RESULTS['stages']]}
    text = forgetting.analyze(runs, {run.folder: panoptic for run in runs}, tmp_path)
    line = '200 (2) | 45 (4) | 60 (2) | - | - | 95 (4) |'
    assert f'| SimCIS | {line}\n| all rows | {line}' in text
    svg = (tmp_path / 'forgetting-shapes_cps_published_8_1.svg').read_text()
    assert 'SimCIS' in svg and 'all rows' not in svg
    semantic = {'stages': [{'miou': {'all': 1.0}, 'per_class': {'sky': {'iou': 1.0}}}] * 2}
    assert forgetting.analyze(runs, {runs[0].folder: semantic}, tmp_path) == ''
