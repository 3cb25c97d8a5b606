"""Scores, tables and figures made from fixed results."""

import json

import numpy as np
import pytest

from experiments import command, components, figures, paper, replay, tables
from experiments.experiment import Setting, make_rows
from experiments.scores import run_scores, summarise
from experiments.tables import Row


def report(stage, base, novel, everything, classes):
    return {
        'stage': stage,
        'pq': {'base': base, 'novel': novel, 'all': everything},
        'per_class': {name: {'pq': score} for name, score in classes.items()},
    }


RESULTS = {
    'stages': [
        report(1, 50.0, None, 50.0, {'sky': 60.0, 'tree': 40.0}),
        report(2, 40.0, 10.0, 25.0, {'sky': 50.0, 'tree': 30.0, 'car': None, 'dog': 10.0}),
    ],
    'average': {'pq': 37.5},
}


def test_scores_of_a_run():
    assert run_scores(RESULTS, 'pq') == {
        'base': 40.0, 'novel': 10.0, 'all': 25.0, 'average': 37.5, 'first': 50.0, 'kept': 80.0,
    }  # fmt: skip


def test_scores_of_given_base_classes_are_means_over_classes_with_a_score():
    scores = run_scores(RESULTS, 'pq', {'sky', 'car'})
    assert (scores['base'], scores['novel'], scores['all']) == (50.0, 20.0, 25.0)
    assert scores['first'] is None and scores['kept'] is None


def test_a_run_of_one_stage_has_neither_average_nor_kept():
    joint = {'stages': RESULTS['stages'][1:], 'average': {'pq': 25.0}}
    scores = run_scores(joint, 'pq', {'sky', 'tree'})
    assert (scores['base'], scores['novel'], scores['average']) == (40.0, 10.0, None)


def test_mean_and_sample_deviation():
    values = [49.2, 51.0, 47.4]
    summary = summarise(values)
    mean = sum(values) / 3
    spread = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
    assert (summary.mean, summary.deviation) == (pytest.approx(mean), pytest.approx(spread))
    assert str(summary) == '49.2 ± 1.8'
    assert str(summarise([3.14])) == '3.1'
    assert summarise([1.0, None]) is None and summarise([]) is None


def rows():
    printed = paper.read('3', '100-50', 'miou_reference')

    def scores(base, novel, everything):
        numbers = dict(base=base, novel=novel, all=everything)
        return numbers | dict(average=None, first=None, kept=None)

    return [
        Row(
            'SimCIS',
            {0: scores(50.0, 30.0, 40.0), 1: scores(52.0, 31.0, 41.6)},
            printed['SimCIS'],
            1.5,
        ),
        Row('ours', {0: scores(41.0, None, 7.0)}),
        Row('CoMFormer', {}, printed['CoMFormer']),
    ]


def test_the_text_of_a_table():
    assert tables.markdown('title', rows(), 'table 3') == (
        '### title\n\n'
        '|  | base | novel | all | replayed MB | seeds '
        '| paper: base | paper: novel | paper: all | paper: avg |\n'
        '| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n'
        '| SimCIS | 51.0 ± 1.4 | 30.5 ± 0.7 | 40.8 ± 1.1 | 1.50 | 0, 1 '
        '| 54.9 | 36.0 | 48.6 | 52.0 |\n'
        '| ours | 41.0 | - | 7.0 | - | 0 | - | - | - | - |\n'
        '| CoMFormer [1] | - | - | - | - | - | 39.5 | 26.2 | 38.4 | 41.2 |\n'
        '\nPaper: table 3.\n'
        '\n[1] Paper: base: printed 39.5, but new 26.2 and all 38.4 imply 44.5.\n'
    )  # fmt: skip


def test_figures_are_written_as_svg_and_png_with_their_numbers(tmp_path):
    figures.save(figures.bars('title', rows(), with_paper=True), tmp_path / 'a' / 'bars')
    text = (tmp_path / 'a' / 'bars.svg').read_text()
    assert '51.0 ± 1.4' in text and '(39.5)' in text and 'CoMFormer' in text
    assert (tmp_path / 'a' / 'bars.png').read_bytes().startswith(b'\x89PNG')
    figures.save(figures.bars('title', rows()), tmp_path / 'ours')
    assert 'CoMFormer' not in (tmp_path / 'ours.svg').read_text()
    boxes = figures.boxes('title', {'ours': [1.0, 2.0, 4.0], 'nothing': []})
    (line,) = [x for x in boxes.axes[0].lines if len(set(x.get_ydata())) == 1 and x.get_lw() == 1.8]
    assert line.get_ydata()[0] == np.median([1.0, 2.0, 4.0])


def test_a_finished_sweep_becomes_a_markdown_file(finished, tmp_path, capsys, monkeypatch):
    arguments = ['--config=configs/shapes_cps_8_2.py', f'--workdir={tmp_path}', '--seeds=0']
    plan = command.make_plan(components.EXPERIMENT, [*arguments, '--variants=SimCIS'])
    text = command.write(plan, {plan.runs[0].folder: finished[1]})
    score = finished[1]['stages'][-1]['pq']['all']
    assert f' | {score:.1f} | ' in text and '### shapes_cps_8_2: PQ' in text
    assert (tmp_path / 'components.md').read_text() == text
    assert (tmp_path / 'components-shapes_cps_8_2-pq.png').is_file()
    command.run(components.EXPERIMENT, [*arguments, '--dry_run'])
    assert '1,000      500' in capsys.readouterr().out


def test_replayed_megabytes_are_those_of_the_last_stage(finished, tmp_path):
    arguments = ['--config=configs/shapes_cps_8_2.py', f'--workdir={tmp_path}', '--seeds=0']
    runs = command.make_plan(replay.EXPERIMENT, arguments).runs
    results = {}
    for run, (images, queries) in zip(runs[:2], [(0, 0), (3_000_000, 500_000)], strict=True):
        for stage, count in ((2, 7), (3, 1)):
            path = run.folder / f'stage_{stage}' / 'replay.json'
            path.parent.mkdir(parents=True)
            stored = {'image_bytes': images * count} | ({'query_bytes': queries} if queries else {})
            path.write_text(json.dumps(stored))
        results[run.folder] = finished[1]
    score = finished[1]['stages'][-1]['pq']['all']
    assert replay.sizes(runs[:2], results, 'pq', replay.IMAGES) == {0.0: score, 3.5: score}
    assert replay.sizes(runs[:2], results, 'pq', replay.QUERIES) == {0.0: score}
    (row,) = [row for row in make_rows(Setting('s', '5', '100-5'), 'pq', runs, results)
              if row.label == '75 images']  # fmt: skip
    assert (row.megabytes, row.paper.megabytes) == (3.5, 3.4)
    assert replay.analyze(runs, results, tmp_path) == ''
    text = (tmp_path / 'replay-shapes_cps_8_2-pq-sizes.svg').read_text()
    assert 'paper, ADE20K 100-5' in text and 'megabytes' in text
