"""Runs that start from a stage of another run or from a converted model."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from random_params import random_params, save_stage_2
from tiny import plain_config, tiny_config

from simcis_jax import main
from simcis_jax.continual.stages import make_stages
from simcis_jax.data import open_source
from simcis_jax.data.category_list import category_entries
from simcis_jax.port.architecture import PLAIN
from simcis_jax.settings.validated import from_config
from simcis_jax.training import inherited_stage
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.stage_evaluation import StageEvaluation
from simcis_jax.training.stage_folder import StageFolder
from simcis_jax.training.trainer import Trainer
from simcis_jax.training.workdir import Workdir
from simcis_jax.types import Categories

CLASSES = 12
SHAPES = open_source('shapes', 'val', num_images=1).categories


def write_categories(folder, number=CLASSES, **changes):
    """Writes categories.json with the first classes; `changes` replace its columns."""
    columns = dataclasses.asdict(SHAPES) | changes
    categories = Categories(**{name: tuple(column[:number]) for name, column in columns.items()})
    (folder / 'categories.json').write_text(json.dumps(category_entries(categories)))


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    return save_stage_2(tmp_path_factory.mktemp('converted'), CLASSES)


def config_from(folder, **changes):
    return tiny_config(**{'training.init_from': str(folder)} | changes)


@pytest.mark.slow
def test_a_converted_stage_is_evaluated_and_the_next_one_trained(converted, tmp_path, monkeypatch):
    folder, params, bank = converted
    trained = []
    train_stage = Trainer.train_stage

    def record(self, stage, previous):
        learned = jax.tree.map(np.asarray, (previous.params, previous.memory))
        trained.append((stage.number, *learned))
        return train_stage(self, stage, previous)

    monkeypatch.setattr(Trainer, 'train_stage', record)
    results = main.run(config_from(folder), str(tmp_path / 'run'))
    assert [report['stage'] for report in results['stages']] == [2, 3]
    scores = [report['pq']['all'] for report in results['stages']]
    assert results['average']['pq'] == pytest.approx(np.mean(scores))
    table, *_ = (tmp_path / 'run/results.txt').read_text().split('\n\n')
    assert [line.split()[0] for line in table.splitlines()[2:]] == ['2', '3', 'avg']
    assert not (tmp_path / 'run' / 'stage_1').exists()
    assert not (folder / 'evaluation.json').exists()

    ((number, first_params, first_bank),) = trained
    assert number == 3
    jax.tree.map(np.testing.assert_array_equal, first_params, params)
    jax.tree.map(np.testing.assert_array_equal, first_bank, bank)
    monkeypatch.setattr(Trainer, 'train_stage', None)
    monkeypatch.setattr(StageEvaluation, 'at_end', None)
    assert main.run(config_from(folder), str(tmp_path / 'run')) == results


@pytest.mark.slow
def test_a_finished_model_is_extended_by_classes_outside_its_data_set(
    finished, tmp_path, monkeypatch
):
    folder, params, bank = save_stage_2(tmp_path / 'old', CLASSES - 2)
    write_categories(tmp_path / 'old', CLASSES - 2, ids=range(1, CLASSES + 1))
    for name in ('stage_1', 'stage_2'):
        (tmp_path / 'old' / name).mkdir(exist_ok=True)
        shutil.copy(finished[0] / name / 'evaluation.json', tmp_path / 'old' / name)
    trained, evaluated = [], []
    train_stage, at_end = Trainer.train_stage, StageEvaluation.at_end

    def record(self, stage, previous):
        trained.append((stage, *jax.tree.map(np.asarray, (previous.params, previous.memory))))
        return train_stage(self, stage, previous)

    monkeypatch.setattr(Trainer, 'train_stage', record)
    monkeypatch.setattr(
        StageEvaluation,
        'at_end',
        lambda self, stage, state: evaluated.append(stage) or at_end(self, stage, state),
    )
    config = config_from(folder, **{'protocol.added': (2,)})
    results = main.run(config, str(tmp_path / 'run'))
    assert [report['stage'] for report in results['stages']] == [1, 2, 3]
    assert results['stages'][:2] == finished[1]['stages'][:2]
    ((stage, grown, grown_bank),) = trained
    assert evaluated == [stage]
    assert stage.current == (10, 11)

    rows = grown['heads']['class_head']['dense']
    old_rows = params['heads']['class_head']['dense']
    assert rows['kernel'].shape == (32, CLASSES)
    np.testing.assert_array_equal(rows['kernel'][:, :10], old_rows['kernel'])
    np.testing.assert_array_equal(rows['bias'][:10], old_rows['bias'])
    assert np.abs(rows['kernel'][:, 10:]).min() > 0
    np.testing.assert_array_equal(grown_bank.queries[:10], bank.queries)
    np.testing.assert_array_equal(grown_bank.written, [3] * 10 + [0] * 2)
    for tree in (grown, params):
        del tree['heads']['class_head']
    jax.tree.map(np.testing.assert_array_equal, grown, params)


def test_a_stage_that_learned_other_classes_is_refused(finished, tmp_path):
    stage = finished[0] / 'stage_2'
    config = config_from(stage, **{'protocol.order': 'descending'})
    message = (
        "after .*stage_1, the model knows 8 classes, .* 8; '.*' is only among .* protocol.base"
    )
    with pytest.raises(ValueError, match=message):
        main.run(config, str(tmp_path / 'run'))
    config = config_from(stage, **{'protocol.base': 6})
    with pytest.raises(ValueError, match="knows 8 classes, and after stage 1 of this run 6; '"):
        main.run(config, str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()


def test_the_best_weights_are_inherited_as_such_and_scored_again(finished, tmp_path, monkeypatch):
    """A stage has scores of its newest weights only."""
    shutil.copytree(finished[0], tmp_path / 'old')
    stage = tmp_path / 'old' / 'stage_2'
    with StageCheckpoints(stage / 'checkpoints') as checkpoints:
        params, memory = checkpoints.read('params'), checkpoints.read('memory')
    best = jax.tree.map(lambda x: x + 1, params)
    with StageCheckpoints(stage / 'best') as checkpoints:
        checkpoints.save_weights(1, best, memory)
    evaluated = []
    monkeypatch.setattr(
        StageEvaluation, 'at_end', lambda self, stage, state: evaluated.append(stage) or {}
    )
    monkeypatch.setattr(Trainer, 'train_stage', lambda *_: None)
    monkeypatch.setattr(Trainer, 'write_results', lambda self, reports: None)
    main.run(config_from(stage / 'best'), str(tmp_path / 'run'))
    with StageCheckpoints(tmp_path / 'run' / 'stage_2' / 'checkpoints') as checkpoints:
        jax.tree.map(np.testing.assert_array_equal, checkpoints.read('params'), best)
    assert [stage.number for stage in evaluated] == [2, 3]


def extended(folder, method):
    """The parameters of a plain network of 10 classes, and those that a run of 12 starts from."""
    changes = {f'model.{key}': value for key, value in PLAIN.items()}
    changes |= {'method.name': method, 'model.class_prior': None}
    values = from_config(tiny_config(**changes).to_dict())
    stages = make_stages(CLASSES, base=8, increment=2)
    image = np.zeros((1, values.data.size, values.data.size, 3), np.uint8)

    def initialize(number, seed=1):
        model = values.method.make_model(stages, values.model).clone(num_classes=number)
        return random_params(model.init, image, seed=seed)['params'], ()

    old, _ = initialize(CLASSES - 2, seed=0)
    write_categories(folder, CLASSES - 2)
    with StageCheckpoints(folder / 'stage_1' / 'checkpoints') as checkpoints:
        checkpoints.save_weights(0, old)
    source = inherited_stage.finished_stage(str(folder / 'stage_1'), stages, SHAPES, initialize)
    workdir = Workdir(folder / 'run', {})
    for _ in range(2):  # A run that is interrupted before the stage has scores does it again.
        inherited_stage.inherit(workdir, source, CLASSES, initialize)
    with StageCheckpoints(workdir.stage(1).checkpoints) as checkpoints:
        return old, checkpoints.read('params')


def test_no_object_stays_the_last_row_of_an_extended_head(tmp_path):
    old, new = extended(tmp_path, 'finetune')
    rows = np.append(np.arange(CLASSES - 2), CLASSES)
    for kind in ('kernel', 'bias'):
        before, after = (x['heads']['class_head']['dense'].pop(kind) for x in (old, new))
        assert after.shape[-1] == CLASSES + 1
        np.testing.assert_array_equal(after[..., rows], before)
    jax.tree.map(np.testing.assert_array_equal, new, old)


def test_a_network_with_arrays_of_stages_is_extended_by_a_stage(tmp_path):
    old, new = extended(tmp_path, 'eclipse')
    before, after = old.pop('finished'), new.pop('finished')

    def check(stack, longer):
        assert len(longer) == len(stack) + 1 == 2
        np.testing.assert_array_equal(longer[0], stack[0])

    jax.tree.map(check, before, after)
    jax.tree.map(np.testing.assert_array_equal, new, old)


def test_new_classes_that_do_not_come_last_are_refused(tmp_path):
    folder, _, _ = save_stage_2(tmp_path, CLASSES - 2)
    config = config_from(folder, **{'protocol.added': (2,), 'protocol.order': 'descending'})
    with pytest.raises(ValueError, match='a class head for 10 classes.*New classes must come last'):
        main.run(config, str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'names': (*SHAPES.names[:3], 'lamp', *SHAPES.names[4:])}, "'lamp' .a thing."),
        ({'is_thing': (*SHAPES.is_thing[:3], False, *SHAPES.is_thing[4:])}, "'{}' .stuff."),
    ],
)
def test_labels_that_change_their_class_are_refused(tmp_path, changes, words):
    folder, _, _ = save_stage_2(tmp_path, CLASSES - 2)
    write_categories(tmp_path, CLASSES - 2, **changes)
    name = SHAPES.names[3]
    message = f"label 3 is {words.format(name)} in .* and '{name}' .a thing. in this data"
    with pytest.raises(ValueError, match=message):
        main.run(config_from(folder, **{'protocol.added': (2,)}), str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()


def test_evaluate_scores_a_converted_stage_and_trains_nothing(converted, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, 'train_stage', None)
    workdir = tmp_path / 'run'
    results = main.run(config_from(converted[0]), str(workdir), mode='evaluate')
    (report,) = results['stages']
    assert report['stage'] == 2 and len(report['per_class']) == 10
    assert json.loads((workdir / 'stage_2' / 'evaluation.json').read_text()) == report
    assert json.loads((workdir / 'results.json').read_text()) == results
    assert main.run(config_from(converted[0]), str(workdir), mode='evaluate') == results


def test_evaluate_leaves_out_an_inherited_stage_without_scores(converted, tmp_path):
    workdir, config = tmp_path / 'run', config_from(converted[0])
    main.run(config, str(workdir), mode='evaluate')
    shutil.copytree(workdir / 'stage_2', workdir / 'stage_3')
    (workdir / 'stage_2' / 'evaluation.json').unlink()
    results = main.run(config, str(workdir), mode='evaluate')
    assert [report['stage'] for report in results['stages']] == [3]
    assert json.loads((workdir / 'results.json').read_text()) == results


def test_evaluate_without_a_finished_stage_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='has no finished stage to evaluate; train one'):
        main.run(tiny_config(), str(tmp_path / 'run'), mode='evaluate')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'method.simcis.bank_size': 3}, r'memory queries is .* \(12, 3, 32\) in this config'),
        ({'model.hidden_dim': 64}, r'params .* set model.\* to the values of its run'),
        ({'model.decoder_layers': 3}, 'params decoder.layers_2.* is absent there'),
        ({'protocol.base': 12}, 'is stage 2, but .* make 1 stages'),
        ({'training.init_from': 'nowhere'}, 'must be a folder stage_N'),
        ({'training.init_from': 'nowhere/stage_1'}, 'must be a folder stage_N'),
    ],
)
def test_a_stage_that_does_not_fit_the_config_is_refused_and_leaves_no_folder(
    converted, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        main.run(config_from(converted[0], **changes), str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({}, "whose masks is 'softmax', this run has 'sigmoid'; set method"),
        ({'model.num_heads': 4}, 'num_heads is 2, this run has 4; set model'),
    ],
)
def test_a_stage_of_another_network_with_equal_shapes_is_refused(tmp_path, changes, message):
    def settings(name, **changes):
        return from_config(plain_config(name, **changes).to_dict())

    (tmp_path / 'config.json').write_text(json.dumps(plain_config('comformer').to_dict()))
    stages = settings('plop').protocol.stages(len(SHAPES))
    with pytest.raises(ValueError, match=message):
        inherited_stage.check_network(
            StageFolder(tmp_path / 'stage_1'), settings('plop', **changes), stages
        )
    inherited_stage.check_network(StageFolder(tmp_path / 'stage_1'), settings('comformer'), stages)


def test_a_stage_that_is_still_training_is_refused(converted, tmp_path):
    settings = tiny_config().to_dict()
    trainer = Trainer(from_config(settings), Workdir(tmp_path, settings))
    stage = trainer.stages[0]
    with StageCheckpoints(tmp_path / 'stage_1' / 'checkpoints') as checkpoints:
        checkpoints.save(0, trainer.states.new(stage, None))
    with pytest.raises(ValueError, match='stage_1 is not finished, it has no evaluation.json'):
        main.run(config_from(tmp_path / 'stage_1'), str(tmp_path / 'run'))
