"""Finished runs and first stages are reused, and reuse does not change the results."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from experiments import first_stages, provenance, sweep
from experiments.sweep import Variant, make_run
from simcis_jax import main
from simcis_jax.continual import virtual_query
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.trainer import Trainer


def tiny_run(workdir, variant=None, **changes):
    return make_run('tiny', tiny_config(**changes), variant or Variant('SimCIS'), 0, 12, workdir)


@pytest.fixture
def sweep_folder(finished, tmp_path):
    """A sweep in which the run without changes is finished."""
    shutil.copytree(finished[0], tiny_run(tmp_path).folder)
    return tmp_path


@pytest.fixture
def started_configs(monkeypatch):
    """Records the configs that would be trained, without training them."""
    configs = []
    monkeypatch.setattr(main, 'run', lambda config, folder: configs.append(config) or {})
    return configs


def test_a_finished_run_is_reused(sweep_folder, finished, started_configs):
    ((_, results),) = sweep.finish([tiny_run(sweep_folder)], sweep_folder)
    assert results == finished[1] and not started_configs


def test_an_unfinished_run_resumes_with_its_own_init_from(sweep_folder, started_configs):
    run = tiny_run(sweep_folder)
    results = json.loads((run.folder / 'results.json').read_text())
    results['stages'].pop()
    (run.folder / 'results.json').write_text(json.dumps(results))
    list(sweep.finish([run], sweep_folder))
    assert [config['training']['init_from'] for config in started_configs] == ['']


def test_a_folder_with_a_run_of_another_config_is_refused(sweep_folder):
    with pytest.raises(ValueError, match='seed=0 holds a run of another config: loss.num_points'):
        sweep.finished(tiny_run(sweep_folder, **{'loss.num_points': 33}))


@pytest.mark.parametrize(
    ('changes', 'shares'),
    [
        ({'method.name': 'finetune'}, True),
        ({'method.simcis.csl_weight': 0.0, 'method.simcis.num_virtual_queries': 0}, True),
        ({'protocol.increment': 1}, True),
        ({'training.steps_per_class': 3}, True),
        ({'training.base_steps': 7}, False),
        ({'training.batch_size': 2}, False),
        ({'model.queries': 'learned', 'method.name': 'pseudo_label'}, False),
        ({'model.stop_gradient': False}, False),
        ({'optimizer.milestones': (0.8, 0.9)}, False),
        ({'protocol.order': 'descending'}, False),
        ({'method.simcis.bank_size': 81}, False),
    ],
)
def test_a_first_stage_is_shared_if_its_training_is_the_same(
    sweep_folder, started_configs, changes, shares
):
    list(sweep.finish([tiny_run(sweep_folder, Variant('', changes))], sweep_folder))
    (config,) = started_configs
    expected = str(tiny_run(sweep_folder).folder / 'stage_1') if shares else ''
    assert config['training']['init_from'] == expected


@pytest.mark.parametrize(
    ('changes', 'is_reused'),
    [
        ({'evaluation.object_mask_threshold': 0.2}, False),
        ({'evaluation.num_pictures': 3, 'evaluation.every': 50, 'data.num_threads': 2}, True),
    ],
)
def test_a_run_with_other_scoring_settings_is_not_reused(sweep_folder, changes, is_reused):
    run = tiny_run(sweep_folder, **changes)
    if is_reused:
        assert len(sweep.finished(run)['stages']) == 3
    else:
        with pytest.raises(ValueError, match='object_mask_threshold is 0.3 there and 0.2 now'):
            sweep.finished(run)


def test_scores_from_before_a_change_of_the_evaluation_are_not_reused(sweep_folder):
    run = tiny_run(sweep_folder, **{'evaluation.overlap_threshold': 0.5})
    path = run.folder / 'config.json'  # As the training command leaves it.
    recorded = json.loads(path.read_text())
    recorded['evaluation']['overlap_threshold'] = 0.5
    path.write_text(json.dumps(recorded))
    message = r'stage 1 was scored with evaluation.overlap_threshold=0.8 \(now: 0.5\)'
    with pytest.raises(ValueError, match=message):
        sweep.finished(run)


def test_a_configured_init_from_takes_precedence(sweep_folder, started_configs):
    changes = {'training.init_from': 'converted/stage_1'}
    run = tiny_run(sweep_folder, Variant('', {'method.name': 'finetune'}), **changes)
    list(sweep.finish([run], sweep_folder))
    assert started_configs[0]['training']['init_from'] == 'converted/stage_1'
    assert '(starts from converted/stage_1)' in sweep.cost([run], sweep_folder)


def test_an_unfinished_first_stage_is_not_shared(sweep_folder, started_configs):
    (tiny_run(sweep_folder).folder / 'stage_1' / 'evaluation.json').unlink()
    list(
        sweep.finish(
            [tiny_run(sweep_folder, Variant('', {'method.name': 'finetune'}))], sweep_folder
        )
    )
    assert started_configs[0]['training']['init_from'] == ''


def test_runs_with_the_largest_bank_come_first(tmp_path):
    names = ('finetune', 'small', 'large')
    variants = [
        Variant('finetune', {'method.name': 'finetune'}),
        Variant('small', {'method.simcis.bank_size': 2}),
        Variant('large', {'method.simcis.bank_size': 9}),
    ]
    runs = [tiny_run(tmp_path, variant) for variant in variants]
    assert [run.variant.label for run in runs] == list(names)
    assert [run.variant.label for run in sweep.execution_order(runs)] == list(reversed(names))


@pytest.mark.slow
def test_another_method_is_trained_after_the_shared_stage(sweep_folder, finished):
    run = tiny_run(sweep_folder, Variant('fine-tuning', {'method.name': 'finetune'}))
    ((_, results),) = sweep.finish([run], sweep_folder)
    assert results['stages'][0] == finished[1]['stages'][0] and len(results['stages']) == 3
    stages = [json.loads(line)['stage'] for line in (run.folder / 'metrics.jsonl').open()]
    assert set(stages) == {2, 3}
    record = provenance.read(run.folder)
    assert record['hours'] > 0 and 'CPU' in record['hardware']
    assert provenance.first_stage_source(run.folder) == tiny_run(sweep_folder).folder.name


@pytest.mark.slow
def test_a_smaller_bank_starts_from_a_copy_that_is_evaluated_again(
    sweep_folder, finished, monkeypatch
):
    changes = {'method.simcis.bank_size': 3, 'evaluation.tasks': ('panoptic',)}
    run = tiny_run(sweep_folder, Variant('', changes))
    stage = first_stages.find(run.config, sweep_folder)
    target = first_stages.adapt(stage, run.config, run.folder.name)
    source = tiny_run(sweep_folder).folder.name
    assert target == sweep_folder / 'first_stages' / run.folder.name / source / 'stage_1'
    config = run.config | {'training': run.config['training'] | {'init_from': str(target)}}
    monkeypatch.setattr(Trainer, 'train_stage', None)
    results = main.run(config, str(run.folder), 'evaluate')
    assert provenance.first_stage_source(run.folder) == source
    assert results['stages'][0]['stage'] == 1
    assert results['stages'][0]['pq'] == finished[1]['stages'][0]['pq']
    assert 'ap' in finished[1]['stages'][0] and 'ap' not in results['stages'][0]
    states = []
    for folder in (run.folder / 'stage_1', stage):
        with StageCheckpoints(Path(folder) / 'checkpoints') as checkpoints:
            states.append([checkpoints.read(item) for item in ('params', 'memory')])
    np.testing.assert_array_equal(
        states[0][0]['heads']['class_head']['dense']['bias'],
        states[1][0]['heads']['class_head']['dense']['bias'],
    )
    assert states[0][1]['queries'].shape[1] == 3
    np.testing.assert_array_equal(states[0][1]['written'], states[1][1]['written'])


def test_a_truncated_bank_equals_a_bank_that_was_small_from_the_start():
    rng = np.random.default_rng(0)
    large, small = (virtual_query.create(4, size, 5) for size in (7, 3))
    for _ in range(6):
        queries = jnp.asarray(rng.normal(size=(9, 5)), jnp.float32)
        labels = jnp.asarray(rng.integers(-1, 3, 9))  # Class 3 gets nothing.
        large, small = (virtual_query.enqueue(bank, queries, labels) for bank in (large, small))
    memory = {name: np.asarray(getattr(large, name)) for name in ('queries', 'written', 'counts')}
    cut = first_stages.shrink_bank(memory, 3)
    for name in memory:
        np.testing.assert_array_equal(cut[name], np.asarray(getattr(small, name)))
    same = first_stages.shrink_bank(memory, 7)
    np.testing.assert_array_equal(same['queries'], memory['queries'])


def test_the_cost_counts_the_remaining_steps(sweep_folder):
    variants = [
        Variant('SimCIS'),
        Variant('fine-tuning', {'method.name': 'finetune'}),
        Variant('learned', {'model.queries': 'learned', 'method.name': 'pseudo_label'}),
        Variant('again', {'model.queries': 'learned', 'method.name': 'finetune'}),
    ]
    lines = sweep.cost(
        [tiny_run(sweep_folder, variant) for variant in variants], sweep_folder
    ).splitlines()
    steps = [[int(text) for text in line.split()[:2]] for line in lines[1:-1]]
    assert steps == [[0, 0], [0, 8], [6, 8], [0, 8]]
    assert '(finished)' in lines[1] and '(shares stage 1)' in lines[2]
    assert (
        lines[-1].split()[0] == '30' and '-' not in lines[-1]
    )  # Rates are known, and so are hours.
    unknown = sweep.cost(
        [tiny_run(sweep_folder / 'elsewhere')], sweep_folder / 'elsewhere'
    ).splitlines()[-1]
    assert unknown.split()[1] == '-'
