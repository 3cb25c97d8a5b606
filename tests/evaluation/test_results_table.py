import json

import numpy as np
import pytest
from scored_stages import (
    CATEGORIES,
    STAGES,
    all_right,
    counts_of,
    instance_scores,
    panoptic_report,
    reports,
)

from simcis_jax.evaluation import stage_report
from simcis_jax.evaluation.class_groups import class_groups
from simcis_jax.evaluation.mean_iou import PixelCounts, SemanticCounts
from simcis_jax.evaluation.results_table import format_per_class, format_table, results
from simcis_jax.types import Categories


def test_results_are_json():
    written = results(reports())
    assert json.loads(json.dumps(written, allow_nan=False)) == written


def test_average_is_the_mean_of_group_all_over_stages():
    counts = [counts_of([value] * 5) for value in (10, 20, 45)]
    stages = [panoptic_report(c, class_groups(STAGES, stage)) for stage, c in enumerate(counts)]
    average = results(stages)['average']
    assert average == pytest.approx({'pq': 25, 'sq': 50, 'rq': 50, 'pq_seen_only': 25 * 8 / 7})


def test_the_table_has_one_row_per_stage_and_the_average():
    assert format_table(results(reports()[:2])).splitlines() == [
        'PQ at stage  base  novel  past  current   all    SQ    RQ  things  stuff  seen only',
        '-----------------------------------------------------------------------------------',
        '1            30.0      -     -     30.0  30.0  60.0  50.0       -   30.0       34.3',
        '2            30.0   30.0  30.0     30.0  30.0  60.0  50.0       -   30.0       34.3',
        'avg                                      30.0  60.0  50.0                      34.3',
    ]


def test_the_semantic_table_has_all_versions_of_miou():
    labelled = PixelCounts(
        true=np.array([4, 2]),
        hits=np.array([2, 2]),
        unassigned=np.array([2, 0]),  # Half of class 0.
        predicted=np.array([2, 2]),
    )
    background = PixelCounts(  # Four more pixels without a label, one of them predicted as b.
        true=np.array([4, 2, 4]),
        hits=np.array([2, 2, 3]),
        unassigned=np.array([0, 0, 0]),
        predicted=np.array([2, 3, 5]),
    )
    counts = SemanticCounts(labelled, background)
    categories = Categories(('a', 'b'), (False, False), ((0, 0, 0),) * 2)
    report = stage_report.semantic_report(counts, class_groups([[0], [1]], 1), categories)
    assert report['per_class'] == {'a': {'iou': 50.0}, 'b': {'iou': 100.0}}
    assert format_table(results([report])).splitlines() == [
        'mIoU at stage  base  novel  past  current   all  reference  background',
        '----------------------------------------------------------------------',
        '1              50.0  100.0  50.0    100.0  75.0      100.0        55.6',
        'avg                                        75.0      100.0        55.6',
    ]


def test_classes_without_a_true_instance_have_no_ap():
    stages = [
        stage_report.instance_report(instance_scores(), class_groups(STAGES, stage), CATEGORIES)
        for stage in range(3)
    ]
    assert stages[2]['per_class']['person'] == {'ap': None, 'ap50': None, 'ap75': None}
    assert format_table(results(stages)).splitlines() == [
        'AP at stage  base  novel  past  current   all  AP50  AP75',
        '---------------------------------------------------------',
        '1               -      -     -        -     -     -     -',
        '2               -      -     -        -     -     -     -',
        '3               -   20.0     -     20.0  20.0  40.0  20.0',
        'avg                                      20.0  40.0  20.0',
    ]


def test_a_merged_report_has_a_table_for_each_task():
    groups = class_groups(STAGES, 2)
    merged = stage_report.merge_reports(
        [
            reports()[2],
            stage_report.semantic_report(all_right(), groups, CATEGORIES),
            stage_report.instance_report(instance_scores(), groups, CATEGORIES),
        ]
    )
    titles = [line.split()[0] for line in format_table(results([merged])).split('\n\n')]
    assert titles == ['PQ', 'mIoU', 'AP']
    rows = format_per_class(merged).splitlines()
    assert rows[-2].split()[-3:] == ['20.0', '40.0', '20.0']


def test_stages_evaluated_on_other_tasks_have_empty_cells():
    semantic = stage_report.semantic_report(all_right(), class_groups(STAGES, 2), CATEGORIES)
    table = format_table(results([reports()[1], {'stage': 2} | semantic]))
    rows = [line.split() for line in table.splitlines() if line[:1].isdigit()]
    assert [row[0] for row in rows] == ['1', '2', '1', '2']
    assert set(rows[1][1:]) == set(rows[2][1:]) == {'-'}
    assert '-' not in rows[3]


def test_stages_scored_with_other_settings_are_named_below_the_table():
    scored = [
        report | {'stage': number, 'settings': {'short_side': side, 'tasks': ['panoptic']}}
        for number, (report, side) in enumerate(zip(reports(), (640, 512, 512), strict=True), 1)
    ]
    table = format_table(results(scored))
    assert table.splitlines()[-2:] == [
        '',
        'stage 1 was scored with evaluation.short_side=640 (stage 3: 512)',
    ]
    scored[0].pop('settings')  # Of an older run.
    assert 'scored with' not in format_table(results(scored))


def test_the_class_table_lists_classes_without_segments():
    counts = counts_of([10, 20, 30, 40, 50])
    for part in (counts.tp, counts.fp, counts.fn, counts.iou):
        part[0] = 0
    report = panoptic_report(counts, class_groups(STAGES, 1))
    assert format_per_class(report).splitlines() == [
        'class    PQ     SQ    RQ  TP  FP  FN',
        '------------------------------------',
        'tree   50.0  100.0  50.0   1   1   1',
        'sky       -      -     -   0   0   0',
        'road   30.0   60.0  50.0   1   1   1',
    ]
