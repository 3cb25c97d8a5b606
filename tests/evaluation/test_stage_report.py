from pathlib import Path

import numpy as np
import pytest
from scored_stages import CATEGORIES, STAGES, all_right, instance_scores, panoptic_report, reports

from simcis_jax.evaluation import stage_report
from simcis_jax.evaluation.class_groups import class_groups
from simcis_jax.evaluation.panoptic_quality import PQCounts
from simcis_jax.types import Categories

GOLDEN = Path(__file__).parent / 'golden'


def test_report_averages_each_group():
    pq = reports()[2]['pq']
    expected = {'base': 30, 'novel': 30, 'past': 30, 'current': 30, 'all': 30}
    expected |= {'all_things': 30, 'all_stuff': 30, 'novel_things': 30, 'novel_stuff': 30}
    assert {name: pq[name] for name in expected} == pytest.approx(expected)
    assert reports()[1]['pq'] == pytest.approx(
        {
            'base': 30,
            'base_things': None,
            'base_stuff': 30,
            'novel': 30,
            'novel_things': None,
            'novel_stuff': 30,
            'past': 30,
            'past_things': None,
            'past_stuff': 30,
            'current': 30,
            'current_things': None,
            'current_stuff': 30,
            'all': 30,
            'all_things': None,
            'all_stuff': 30,
        }
    )


def test_report_lists_seen_classes_only():
    per_class = reports()[1]['per_class']
    assert list(per_class) == ['tree', 'sky', 'road']
    assert per_class['tree'] == pytest.approx(
        {'pq': 50, 'sq': 100, 'rq': 50, 'tp': 1, 'fp': 1, 'fn': 1}
    )


def test_reports_of_several_tasks_are_merged():
    groups = class_groups(STAGES, 2)
    parts = [
        reports()[2],
        stage_report.semantic_report(all_right(), groups, CATEGORIES),
        stage_report.instance_report(instance_scores(), groups, CATEGORIES),
    ]
    merged = stage_report.merge_reports(parts)
    assert merged['pq'] == parts[0]['pq'] and merged['ap'] == parts[2]['ap']
    assert list(merged['per_class']['car']) == [
        *('pq', 'sq', 'rq', 'tp', 'fp', 'fn', 'iou', 'ap', 'ap50', 'ap75'),
    ]
    assert merged['per_class']['sky']['ap'] is None and merged['per_class']['sky']['iou'] == 100


@pytest.mark.parametrize('stage', [0, 1, 2])
def test_groups_equal_the_published_evaluator(stage):
    with np.load(GOLDEN / 'metrics_pq.npz') as golden:
        tp, fp, fn, iou = golden['tp_fp_fn_iou'].T
        names, values = golden[f'task{stage + 1}/names'], golden[f'task{stage + 1}/values']
    with np.load(GOLDEN / 'post_handmade.npz') as golden:
        things = set(golden['thing_ids'].tolist())
    categories = Categories(
        names=tuple(f'class {c}' for c in range(150)),
        is_thing=tuple(c in things for c in range(150)),
        colors=((0, 0, 0),) * 150,
    )
    stages = [range(100), *(range(first, first + 10) for first in range(100, 150, 10))]
    report = panoptic_report(
        PQCounts(*(part.astype(np.int64) for part in (tp, fp, fn)), iou=iou),
        class_groups(stages, stage),
        categories,
    )
    groups = {'Old': 'base', 'New': 'novel', 'Past': 'past', 'Current': 'current', 'All': 'all'}
    parts = {'th': '_things', 'st': '_stuff'}
    for name, value in zip(names.tolist(), values.tolist(), strict=True):
        metric, group, *part = name.split('_')
        mine = report[metric.lower()][groups[group] + ''.join(parts[p] for p in part)]
        assert (np.nan if mine is None else mine) == pytest.approx(value, abs=1e-6, nan_ok=True)
