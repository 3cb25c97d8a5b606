import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from simcis_jax.evaluation import continual
from simcis_jax.evaluation.mean_iou import PixelCounts
from simcis_jax.evaluation.panoptic_quality import PQCounts
from simcis_jax.types import Categories

GOLDEN = Path(__file__).parent / 'golden'
STAGES = [(4, 0), (2,), (1, 3)]
CATEGORIES = Categories(
    names=('sky', 'car', 'road', 'person', 'tree'),
    is_thing=(False, True, False, True, False),
    colors=((0, 0, 0),) * 5,
)


def counts_of(pq):
    """Counts that give this PQ in percent: half of the segments match, with IoU 2 pq."""
    pq = np.asarray(pq, np.float64)
    ones = np.ones(len(pq), np.int64)
    return PQCounts(tp=ones, fp=ones, fn=ones, iou=pq / 50)


def panoptic_report(counts, groups, categories=CATEGORIES):
    """The report of counts of which half of the false positives lie on unseen classes."""
    seen_only = dataclasses.replace(counts, fp=counts.fp / 2)
    return continual.panoptic_report(counts, groups, categories, seen_only=seen_only)


def reports():
    counts = counts_of([10, 20, 30, 40, 50])
    return [panoptic_report(counts, continual.class_groups(STAGES, stage)) for stage in range(3)]


def test_groups_of_the_first_stage():
    assert continual.class_groups(STAGES, 0) == {
        'base': (4, 0),
        'novel': (),
        'past': (),
        'current': (4, 0),
        'all': (4, 0),
    }


def test_groups_of_the_last_stage():
    assert continual.class_groups(STAGES, 2) == {
        'base': (4, 0),
        'novel': (2, 1, 3),
        'past': (4, 0, 2),
        'current': (1, 3),
        'all': (4, 0, 2, 1, 3),
    }


@pytest.mark.parametrize('stage', [-1, 3])
def test_a_stage_that_does_not_exist_is_an_error(stage):
    with pytest.raises(ValueError, match=f'Stage {stage} does not exist'):
        continual.class_groups(STAGES, stage)


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


def test_results_are_json():
    results = continual.results(reports())
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_average_is_the_mean_of_group_all_over_stages():
    counts = [counts_of([value] * 5) for value in (10, 20, 45)]
    stages = [
        panoptic_report(c, continual.class_groups(STAGES, stage)) for stage, c in enumerate(counts)
    ]
    average = continual.results(stages)['average']
    assert average == pytest.approx({'pq': 25, 'sq': 50, 'rq': 50, 'pq_seen_only': 25 * 8 / 7})


def test_the_table_has_one_row_per_stage_and_the_average():
    assert continual.format_table(continual.results(reports()[:2])).splitlines() == [
        'PQ at stage  base  novel  past  current   all    SQ    RQ  things  stuff  seen only',
        '-----------------------------------------------------------------------------------',
        '1            30.0      -     -     30.0  30.0  60.0  50.0       -   30.0       34.3',
        '2            30.0   30.0  30.0     30.0  30.0  60.0  50.0       -   30.0       34.3',
        'avg                                      30.0  60.0  50.0                      34.3',
    ]


def test_the_semantic_table_has_both_versions_of_miou():
    counts = PixelCounts(
        true=np.array([4, 2]),
        hits=np.array([2, 2]),
        unassigned=np.array([2, 0]),  # Half of class 0.
        predicted=np.array([2, 2]),
    )
    categories = Categories(('a', 'b'), (False, False), ((0, 0, 0),) * 2)
    report = continual.semantic_report(counts, continual.class_groups([[0], [1]], 1), categories)
    assert report['per_class'] == {'a': {'iou': 50.0}, 'b': {'iou': 100.0}}
    assert continual.format_table(continual.results([report])).splitlines() == [
        'mIoU at stage  base  novel  past  current   all  reference',
        '----------------------------------------------------------',
        '1              50.0  100.0  50.0    100.0  75.0      100.0',
        'avg                                        75.0      100.0',
    ]


def instance_scores():
    """AP of `car`; the other classes have none."""
    ap = np.array([np.nan, 20, np.nan, np.nan, np.nan])
    return {'ap': ap, 'ap50': 2 * ap, 'ap75': ap}


def test_classes_without_a_true_instance_have_no_ap():
    stages = [
        continual.instance_report(
            instance_scores(), continual.class_groups(STAGES, stage), CATEGORIES
        )
        for stage in range(3)
    ]
    assert stages[2]['per_class']['person'] == {'ap': None, 'ap50': None, 'ap75': None}
    assert continual.format_table(continual.results(stages)).splitlines() == [
        'AP at stage  base  novel  past  current   all  AP50  AP75',
        '---------------------------------------------------------',
        '1               -      -     -        -     -     -     -',
        '2               -      -     -        -     -     -     -',
        '3               -   20.0     -     20.0  20.0  40.0  20.0',
        'avg                                      20.0  40.0  20.0',
    ]


def all_right():
    """Counts of pixels of all five classes that are all predicted right."""
    pixels = np.array([1, 2, 3, 4, 5])
    return PixelCounts(true=pixels, hits=pixels, unassigned=0 * pixels, predicted=pixels)


def test_reports_of_several_tasks_are_merged():
    groups = continual.class_groups(STAGES, 2)
    parts = [
        reports()[2],
        continual.semantic_report(all_right(), groups, CATEGORIES),
        continual.instance_report(instance_scores(), groups, CATEGORIES),
    ]
    merged = continual.merge_reports(parts)
    assert merged['pq'] == parts[0]['pq'] and merged['ap'] == parts[2]['ap']
    assert list(merged['per_class']['car']) == [
        *('pq', 'sq', 'rq', 'tp', 'fp', 'fn', 'iou', 'ap', 'ap50', 'ap75'),
    ]
    assert merged['per_class']['sky']['ap'] is None and merged['per_class']['sky']['iou'] == 100
    titles = [
        line.split()[0]
        for line in continual.format_table(continual.results([merged])).split('\n\n')
    ]
    assert titles == ['PQ', 'mIoU', 'AP']
    rows = continual.format_per_class(merged).splitlines()
    assert rows[-2].split()[-3:] == ['20.0', '40.0', '20.0']


def test_stages_evaluated_on_other_tasks_have_empty_cells():
    semantic = continual.semantic_report(all_right(), continual.class_groups(STAGES, 2), CATEGORIES)
    table = continual.format_table(continual.results([reports()[1], {'stage': 2} | semantic]))
    rows = [line.split() for line in table.splitlines() if line[:1].isdigit()]
    assert [row[0] for row in rows] == ['1', '2', '1', '2']
    assert set(rows[1][1:]) == set(rows[2][1:]) == {'-'}
    assert '-' not in rows[3]


def test_stages_scored_with_other_settings_are_named_below_the_table():
    scored = [
        report | {'stage': number, 'settings': {'short_side': side, 'tasks': ['panoptic']}}
        for number, (report, side) in enumerate(zip(reports(), (640, 512, 512), strict=True), 1)
    ]
    table = continual.format_table(continual.results(scored))
    assert table.splitlines()[-2:] == [
        '',
        'stage 1 was scored with evaluation.short_side=640 (stage 3: 512)',
    ]
    scored[0].pop('settings')  # Of an older run.
    assert 'scored with' not in continual.format_table(continual.results(scored))


def test_the_class_table_lists_classes_without_segments():
    counts = counts_of([10, 20, 30, 40, 50])
    for part in (counts.tp, counts.fp, counts.fn, counts.iou):
        part[0] = 0
    report = panoptic_report(counts, continual.class_groups(STAGES, 1))
    assert continual.format_per_class(report).splitlines() == [
        'class    PQ     SQ    RQ  TP  FP  FN',
        '------------------------------------',
        'tree   50.0  100.0  50.0   1   1   1',
        'sky       -      -     -   0   0   0',
        'road   30.0   60.0  50.0   1   1   1',
    ]


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
        continual.class_groups(stages, stage),
        categories,
    )
    groups = {'Old': 'base', 'New': 'novel', 'Past': 'past', 'Current': 'current', 'All': 'all'}
    parts = {'th': '_things', 'st': '_stuff'}
    for name, value in zip(names.tolist(), values.tolist(), strict=True):
        metric, group, *part = name.split('_')
        mine = report[metric.lower()][groups[group] + ''.join(parts[p] for p in part)]
        assert (np.nan if mine is None else mine) == pytest.approx(value, abs=1e-6, nan_ok=True)
