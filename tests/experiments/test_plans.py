"""Every experiment plans the runs that its table needs, and has the paper's numbers."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from experiments import (
    class_orders,
    clusters,
    command,
    compare_methods,
    compare_tuned,
    components,
    drift,
    duplicates,
    first_stages,
    forgetting,
    paper,
    remedies,
    replay,
    stop_gradient,
    tuning,
)
from simcis_jax.continual import virtual_query
from simcis_jax.runtime.command import CONFIGS
from simcis_jax.settings.groups import flat
from simcis_jax.settings.keys import GROUPS
from simcis_jax.settings.validated import from_config

EXPERIMENTS = {
    module.EXPERIMENT.name: module
    for module in (
        class_orders, clusters, compare_methods, compare_tuned, components, drift, duplicates,
        forgetting, remedies, replay, stop_gradient, tuning,
    )
}  # fmt: skip
CASES = [
    (name, data) for name, module in EXPERIMENTS.items() for data in module.EXPERIMENT.settings
]


def plan(module, data, *arguments):
    return command.make_plan(
        module.EXPERIMENT, [f'--data={data}', '--workdir=sweep', '--seeds=0,1', *arguments]
    )


def differing(run, other):
    """Dotted keys whose values differ, among those that both runs have."""
    ours, theirs = (flat(x.config, GROUPS) for x in (run, other))
    return {key for key in ours.keys() & theirs.keys() if ours[key] != theirs[key]}


@pytest.mark.parametrize(('name', 'data'), CASES)
def test_runs_have_valid_configs_and_folders_of_their_own(name, data):
    runs = plan(EXPERIMENTS[name], data).runs
    assert len({run.folder for run in runs}) == len(runs)
    for run in runs:
        checked = from_config(run.config)
        assert checked.training.seed == run.seed
        assert sum(len(stage.current) for stage in run.stages) == command.DATA[data]
        assert len(run.folder.name) < 200 and ',' not in run.folder.name


def test_runs_of_one_config_have_one_folder_in_all_experiments():
    runs = [run for name, data in CASES if data == 'ade20k'
            for run in plan(EXPERIMENTS[name], data).runs]  # fmt: skip
    configs = {}
    for run in runs:
        assert configs.setdefault(run.folder, run.config) == run.config
    shared = [run.folder.name for run in runs].count('ade_cps_100_5+seed=0')
    # Tables 1, 4, 5 (row of 80 queries) and 8, drift, clusters, duplicates, forgetting, remedies.
    assert shared == 9


def test_the_components_are_switched_one_by_one():
    runs = {r.variant.label: r for r in plan(components, 'ade20k').runs if 'cps' in r.setting}
    full = runs['SimCIS']
    assert differing(runs['+ QPA + CSL'], full) == {'method.simcis.num_virtual_queries'}
    assert differing(runs['+ QPA + VQ'], full) == {
        'method.simcis.csl_weight',
        'method.simcis.decoder_kl_weight',
    }
    assert differing(runs['+ QPA'], full) == {'method.name'}
    learned = runs['pseudo-labels, learned queries']
    assert differing(learned, full) == {'method.name', 'model.queries'}
    csl = from_config(runs['+ QPA + CSL'].config).method
    assert (csl.csl_weight, csl.num_virtual_queries) == (2.0, 0)
    vq = from_config(runs['+ QPA + VQ'].config).method
    assert (vq.csl_weight, vq.decoder_kl_weight, vq.num_virtual_queries) == (0.0, 0.0, 5)


def test_every_method_has_equally_many_trials_and_each_changes_one_setting():
    runs = plan(tuning, 'shapes', '--seeds=3').runs
    by_method = {}
    for run in runs:
        by_method.setdefault(run.variant.label.split(': ')[0], []).append(run)
    compared = {v.label for v in compare_methods.VARIANTS}
    assert by_method.keys() == compared - {'joint', 'BalConpas with replay'}
    for published, *others in by_method.values():
        assert published.config['data']['hold_out'] == 10 and len(others) == 2
        changed = [differing(run, published) for run in others]
        assert changed[0] == changed[1] and len(changed[0]) == 1


def test_the_best_trial_is_chosen_once_all_are_finished(tmp_path):
    runs = plan(tuning, 'shapes', '--variants=MiB', '--seeds=3,4').runs
    scores = (1, 1, 5, 5, 2, 2)
    reports = [{'pq': {'all': 10.0 * x + run.seed, 'base': 1, 'novel': 1}}
               for run, x in zip(runs, scores, strict=True)]  # fmt: skip
    found = {run.folder: {'stages': [report] * 5, 'average': {}}
             for run, report in zip(runs, reports, strict=True)}  # fmt: skip
    assert '| MiB | 13.5 | 53.5 | 23.5 | smaller |' in tuning.analyze(runs, found, tmp_path)
    del found[runs[-1].folder]  # One of two seeds.
    assert '| 53.5 | - | - |' in tuning.analyze(runs, found, tmp_path)
    assert tuning.analyze(runs, {}, tmp_path) == ''


def test_table_8_differs_in_the_stop_gradient_alone():
    off, on = plan(stop_gradient, 'coco', '--seeds=0').runs
    assert differing(off, on) == {'model.stop_gradient'} and on.config['model']['stop_gradient']


@pytest.mark.parametrize(
    ('data', 'classes', 'changes'),
    [('shapes', 11, []), ('ade20k', 145, []), ('shapes', 10, ['--config.protocol.added=(2,)'])],
)
def test_images_get_the_memory_of_the_queries_of_the_last_stage(data, classes, changes):
    runs = {r.variant.label: r for r in plan(replay, data, '--seeds=0', *changes).runs}
    for count in (80, 160):
        config = from_config(runs[f'images in the bytes of {count} queries'].config)
        bank = virtual_query.create(classes, count, config.model['hidden_dim'])
        room = config.protocol.replay_megabytes * 1e6
        assert room == pytest.approx(bank.queries.nbytes) and not config.protocol.replay_images
        assert config.method.num_virtual_queries == 0


def test_scores_by_size_are_means_of_rows_whose_seeds_keep_different_images(tmp_path):
    rows = (
        '0 images',
        '75 images',
        '80 virtual queries a class',
        'images in the bytes of 80 queries',
    )
    runs = plan(replay, 'shapes', f'--workdir={tmp_path}').runs
    runs = [run for run in runs if run.variant.label in rows]
    stored = [(0, 0), (0, 0), (7e5, 0), (9e5, 0), (0, 2e5), (0, 2e5), (1e5, 0), (3e5, 0)]
    results = {}
    for score, (run, (images, queries)) in enumerate(zip(runs, stored, strict=True)):
        stage = run.folder / f'stage_{len(run.stages)}'
        stage.mkdir(parents=True)
        stored_bytes = {'image_bytes': images, 'query_bytes': queries}
        (stage / 'replay.json').write_text(json.dumps(stored_bytes))
        scored = {'pq': {'base': 1.0, 'novel': 1.0, 'all': float(score)}}
        results[run.folder] = {'stages': [scored] * 5, 'average': {'pq': 1.0}}
    found = [list(replay.sizes(runs, results, 'pq', kind).items()) for kind in replay.KINDS]
    assert found[0] == [(0.0, 0.5), (pytest.approx(0.2), 6.5), (pytest.approx(0.8), 2.5)]
    assert found[1] == [(0.0, 0.5), (pytest.approx(0.2), 4.5)]


def test_class_orders_are_the_papers_on_ade20k_and_random_ones_elsewhere():
    runs = plan(class_orders, 'ade20k', '--seeds=0').runs
    orders = [run.config['protocol']['order'] for run in runs]
    assert orders == 2 * ['origin', *(f'ade20k_{number}' for number in range(1, 11))]
    assert [run.config['method']['name'] for run in runs] == 11 * ['simcis'] + 11 * ['finetune']
    assert len({run.folder for run in runs}) == 22
    runs = plan(class_orders, 'shapes', '--seeds=0').runs
    learned = {run.stages[-1].seen for run in runs}
    assert len(learned) == 11 and runs[-1].stages[0].current == tuple(range(11, 3, -1))


def test_the_spread_over_class_orders_is_that_of_each_method():
    runs = plan(class_orders, 'shapes', '--seeds=0', '--variants=order 1,order 10,origin').runs
    results = {
        run.folder: {
            'stages': [{'pq': {'base': 1.0, 'novel': 1.0, 'all': score}}] * 2,
            'average': {'pq': score},
        }
        for run, score in zip(runs, [40.0, 42.0, 44.0, 6.0, 5.0, 4.0], strict=True)
    }
    measured = {
        method: class_orders.measured_orders(runs, results, 'pq', method)
        for method in ('SimCIS', 'fine-tuning')
    }
    assert measured == {'SimCIS': [40.0, 42.0, 44.0], 'fine-tuning': [6.0, 5.0, 4.0]}
    text = class_orders.spread('PQ', measured)
    assert '| SimCIS | 3 | 42.0 | 2.0 | 40.0 | 41.0 | 42.0 | 43.0 | 44.0 |' in text
    assert '| fine-tuning | 3 | 5.0 | 1.0 | 4.0 | 4.5 | 5.0 | 5.5 | 6.0 |' in text


def test_the_spread_over_class_orders_is_not_that_over_seeds():
    runs = plan(class_orders, 'shapes', '--seeds=0,1', '--variants=origin,order 1,order 2').runs
    runs = [run for run in runs if not run.variant.label.startswith('fine-tuning')][:5]
    scores = {0: 30.0, 1: 40.0}
    results = {
        run.folder: {
            'stages': [{'pq': {'base': 1.0, 'novel': 1.0, 'all': scores[run.seed]}}] * 2,
            'average': {'pq': 1.0},
        }
        for run in runs
    }
    # The last order has one seed yet.
    assert class_orders.measured_orders(runs, results, 'pq', 'SimCIS') == [35.0, 35.0]


def test_joint_training_sees_all_classes_for_as_many_steps():
    runs = plan(compare_methods, 'ade20k', '--settings=ade_cps_100_10', '--seeds=3').runs
    joint = next(run for run in runs if run.variant.joint)
    assert joint.steps == (160_000 + 50 * 1000, 0) and len(joint.stages) == 1
    assert joint.base_classes == tuple(range(100))
    assert joint.folder.name == 'ade_cps_100_10+joint+seed=3'


def test_values_settings_and_variants_can_be_selected():
    arguments = ['--variants=QPA', '--config.training.batch_size=2', '--data_root=/sets']
    runs = plan(components, 'ade20k', *arguments, '--settings=ade_css_100_5').runs
    assert {run.variant.label for run in runs} == {'+ QPA', '+ QPA + CSL', '+ QPA + VQ'}
    assert all(run.config['training']['batch_size'] == 2 for run in runs)
    assert runs[0].config['data']['root'] == '/sets/ade20k_semantic'
    (run,) = plan(components, 'camvid', '--data_root=/sets', '--variants=SimCIS',
                  '--settings=camvid_css_6_1', '--seeds=0').runs  # fmt: skip
    assert run.config['data']['root'] == '/sets'


@pytest.mark.parametrize(
    ('module', 'words', 'labels'),
    [
        (class_orders, 'order 1', ['order 1', 'fine-tuning, order 1']),
        (replay, '0 images,160 virtual', ['0 images', '160 virtual queries a class']),
        (components, '+ QPA + VQ', ['+ QPA + VQ']),
    ],
)
def test_variants_are_selected_by_whole_words(module, words, labels):
    runs = plan(module, 'shapes', '--seeds=0', f'--variants={words}').runs
    assert [run.variant.label for run in runs] == labels


def test_a_variant_needs_a_config_in_one_of_the_settings_only():
    runs = plan(compare_methods, 'ade20k', '--seeds=0', '--variants=MiB').runs
    assert [run.setting for run in runs] == [f'ade_cps_100_{b}' for b in (5, 10, 50)]
    assert {run.variant.label for run in runs} == {'MiB'}


@pytest.mark.parametrize('config', ['shapes_cps_8_2', 'configs/shapes_cps_8_2.py'])
def test_a_custom_config_replaces_the_settings(config):
    arguments = [f'--config={config}', '--workdir=sweep', '--seeds=0']
    runs = command.make_plan(components.EXPERIMENT, arguments).runs
    assert {run.setting for run in runs} == {'shapes_cps_8_2'} and len(runs) == 5


def test_a_config_of_any_name_has_the_methods_of_its_own_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('mine.py').write_text((CONFIGS / 'shapes_cps_8_2.py').read_text())
    arguments = ['--config=mine.py', '--workdir=sweep', '--seeds=0']
    runs = command.make_plan(compare_methods.EXPERIMENT, arguments).runs
    own = [variant.label for variant in compare_methods.VARIANTS if not variant.families]
    assert [run.variant.label for run in runs] == own


def test_all_remedies_together_are_the_default_of_the_built_in_shapes():
    runs = plan(remedies, 'shapes', '--seeds=0').runs
    for name in ('8_1', '8_2'):
        small = command.read_config(f'shapes_cps_{name}', [], None)
        ours = [run for run in runs if run.setting == f'shapes_cps_published_{name}']
        by_label = {run.variant.label: run for run in ours}
        together = by_label['all together']
        keys, wanted = flat(together.config, GROUPS), flat(small.to_dict(), GROUPS)
        assert keys == {key: wanted[key] for key in keys} | {'training.seed': 0}
        three = by_label['merged duplicates, lower thresholds, doubt']
        late_stop = {'training.stop_gradient_from_stage'}
        assert differing(together, three) == late_stop
        assert differing(by_label['stop gradient from stage 2'], by_label['SimCIS']) == late_stop
        never = by_label['the three, no stop gradient']
        assert differing(never, three) == {'model.stop_gradient'}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'give either --data'),
        (['--data=shapes', '--variants=Sim,nothing', '--settings=shapes'], 'is none of'),
        (['--data=shapes', '--variants=nothing'], '--variants=nothing matches no variant'),
        (['--data=shapes', '--config.protocol.increment=3'], 'must be one of'),
        (
            ['--data=shapes', '--config.method.futcr.contrast_weight=1'],
            'method.futcr.contrast_weight belongs to a method that no run chooses; leave it out.',
        ),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        command.make_plan(components.EXPERIMENT, [*arguments, '--workdir=sweep'])


def test_an_unknown_flag_is_refused(capsys):
    with pytest.raises(SystemExit, match='2'):
        command.make_plan(components.EXPERIMENT, ['--data=shapes', '--seed=1', '--workdir=sweep'])
    assert "unexpected '--seed=1'" in capsys.readouterr().err


def test_a_folder_may_begin_with_the_home_folder(monkeypatch):
    monkeypatch.setenv('HOME', '/home/someone')
    arguments = ['--data=shapes', '--workdir=~/sweep', '--data_root=~/data', '--seeds=0']
    found = command.make_plan(components.EXPERIMENT, arguments)
    assert str(found.workdir) == '/home/someone/sweep'
    assert found.runs[0].config['data']['root'] == '/home/someone/data'


@pytest.mark.parametrize(
    'module, tables', [(components, '4'), (replay, '5'), (class_orders, '7'), (stop_gradient, '8')]
)
def test_every_row_of_the_paper_has_a_variant(module, tables):
    labels = {run.variant.label for run in plan(module, 'ade20k').runs}
    labels = {label for label in labels if not label.startswith(class_orders.FINE_TUNING)}
    labels -= {f'images in the bytes of {count} queries' for count in (80, 160)}
    printed = {label for label in paper.read(tables) if 'ECLIPSE' not in label}
    assert labels == printed - {'0 virtual queries a class'}  # The same as no images.


def test_every_published_setting_has_the_papers_numbers():
    for setting in compare_methods.EXPERIMENT.settings['ade20k']:
        metric = 'pq' if 'cps' in setting.name else 'miou_reference'
        rows = paper.read(setting.table, setting.protocol, metric)
        assert {'SimCIS', 'joint', 'fine-tuning', 'ECLIPSE'} <= set(rows), setting
        page = __import__(f'simcis_jax.configs.{setting.name}', fromlist=['_']).__doc__
        ours = rows['SimCIS']
        for number in (ours.base, ours.novel, ours.all):
            assert f' {number}' in page, setting.name
    assert paper.read('9', '83-5', 'pq')['SimCIS'].all == 33.6
    assert [row.megabytes for row in paper.read('5').values()][-2:] == [5.9, 12.0]


def test_the_papers_scores_are_means_over_classes_except_where_a_note_says_otherwise():
    """`all` is the mean over all classes, so base and novel must average to it."""
    with paper.PATH.open(newline='') as file:
        lines = list(csv.DictReader(file, delimiter='\t'))
    assert {key for key in lines[0]} == {field.name for field in dataclasses.fields(paper.PaperRow)}
    wrong = []
    for line in lines:
        if not (line['base'] and line['novel'] and line['all']):
            continue
        base, classes = int(line['setting'].split('-')[0]), 133 if line['table'] == '9' else 150
        mean = float(line['base']) * base + float(line['novel']) * (classes - base)
        if abs(mean / classes - float(line['all'])) > 0.16:
            wrong.append((line['table'], line['setting'], line['row']))
            assert 'impl' in line['note'], line
    assert wrong == [('3', '100-10', 'BalConpas'), ('3', '100-50', 'CoMFormer')]


def test_runs_with_the_same_first_stage_share_it():
    def stage_1_runs(module, data, *arguments):
        runs = plan(module, data, '--seeds=0', *arguments).runs
        keys = [first_stages.first_stage_key(run.config) for run in runs]
        return len([key for i, key in enumerate(keys) if key not in keys[:i]])

    assert stage_1_runs(components, 'shapes') == 2  # Learned and selected queries.
    assert stage_1_runs(replay, 'ade20k') == 1
    assert stage_1_runs(stop_gradient, 'ade20k') == 2
    assert stage_1_runs(class_orders, 'shapes') == 11
    # 100-5 and 100-10 share; 100-50 decays the learning rate earlier. Joint training has its own.
    chosen = '--settings=ade_cps_100_5,ade_cps_100_10,ade_cps_100_50'
    assert stage_1_runs(compare_methods, 'ade20k', chosen, '--variants=SimCIS') == 2
    assert stage_1_runs(compare_methods, 'ade20k', chosen, '--variants=joint') == 2


def test_a_method_that_changes_stage_1_shares_it_with_none():
    arguments = ['--settings=shapes_cps_published_8_2', '--variants=SimCIS', '--seeds=0']
    keys = [
        first_stages.first_stage_key(
            plan(compare_methods, 'shapes', *arguments, *more).runs[0].config
        )
        for more in ([], ['--config.method.name=futcr'], ['--config.method.name=finetune'])
    ]
    assert keys[0] == keys[2] != keys[1]
