"""Pretrained models in use: prediction, evaluation, and training that starts from one."""

import json

import cv2
import jax
import numpy as np
import pytest
from random_params import random_params
from tiny import tiny_config

from simcis_jax import convert, main, predict
from simcis_jax.data import Shapes
from simcis_jax.data.category_list import category_entries
from simcis_jax.data.class_names import first_difference, named_categories
from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.port import hugging_face, names, pretrained, state_dicts
from simcis_jax.port.architecture import PLAIN
from simcis_jax.port.torch_weights import to_torch
from simcis_jax.training import initial_weights, trainer
from simcis_jax.training.checkpointing import StageCheckpoints

NETWORK = dict(
    backbone='swin_small',
    num_queries=12,
    hidden_dim=64,
    num_heads=4,
    encoder_layers=1,
    encoder_feedforward=32,
    decoder_layers=1,
    decoder_feedforward=32,
    **PLAIN,
)
CLASSES = Shapes('val').categories


@pytest.fixture(scope='module')
def params():
    model = Mask2Former(len(CLASSES), **NETWORK)
    return random_params(model.init, np.zeros((1, 64, 64, 3), np.uint8), scale=0.2)['params']


@pytest.fixture(scope='module')
def folder(params, tmp_path_factory):
    """A folder of transformers with the classes of the built-in data set."""
    path = tmp_path_factory.mktemp('models') / 'mask2former'
    hugging_face.write(path, params, CLASSES.names, short_side=64, max_side=96)
    return path


def config_from(folder, **changes):
    """Joint training of two steps."""
    config = tiny_config(
        **{
            'method.name': 'finetune',
            'protocol.base': len(CLASSES),
            'training.base_steps': 2,
            'training.init_from': str(folder),
            'evaluation.tasks': ('panoptic', 'semantic'),
            'evaluation.semantic_rule': 'soft_sum',
            **changes,
        }
    )
    config.model.update(NETWORK, class_prior=None)
    return config


@pytest.mark.slow
def test_a_folder_of_transformers_segments_images_with_its_classes(folder, tmp_path, params):
    predictor = predict.load(folder, object_mask_threshold=0.0, overlap_threshold=0.0)
    assert predictor.categories.names == CLASSES.names
    evaluation = predict.load(folder).evaluation
    assert (evaluation.object_mask_threshold, evaluation.overlap_threshold) == (0.8, 0.8)
    assert (evaluation.short_side, evaluation.max_side) == (64, 96)
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (4, 5, 3)).astype(np.uint8), (80, 50))
    result = predictor(image)
    assert result.segment_map.shape == (50, 80) and result.label_map.min() >= 0
    assert len(result.labels) > 0 and set(result.names) <= set(CLASSES.names)

    # The same weights as a file of detectron2, which has no class names.
    path = tmp_path / 'model_final.pth'
    state_dicts.write_state(path, to_torch(params, names.MASK2FORMER['swin']))
    with pytest.raises(ValueError, match='has no class names; give --categories=FILE'):
        predict.load(path)
    entries = [{'id': i, 'name': f'{i}', 'isthing': 1} for i in range(len(CLASSES) + 1)]
    (tmp_path / 'classes.json').write_text(json.dumps(entries))
    with pytest.raises(ValueError, match='lists 13 classes, but .*model_final.pth has 12'):
        predict.load(path, categories=tmp_path / 'classes.json')
    (tmp_path / 'classes.json').write_text(json.dumps(entries[:-1]))
    other = predict.load(
        path,
        categories=tmp_path / 'classes.json',
        short_side=64,
        max_side=96,
        object_mask_threshold=0.0,
        overlap_threshold=0.0,
    )
    np.testing.assert_array_equal(other(image).label_map, result.label_map)


@pytest.mark.slow
def test_a_pretrained_model_is_evaluated_and_trained(folder, tmp_path, params, capsys):
    results = main.run(config_from(folder), str(tmp_path / 'evaluated'), mode='evaluate')
    assert len(results['stages']) == 1
    with StageCheckpoints(tmp_path / 'evaluated' / 'stage_1' / 'checkpoints') as checkpoints:
        saved = checkpoints.read('params')
    jax.tree.map(np.testing.assert_array_equal, saved, params)
    config = config_from(folder, **{'training.init_backbone': 'missing.pkl'})  # Is not needed.
    main.run(config, str(tmp_path / 'trained'))
    assert f'starting from {folder}; class head kept' in capsys.readouterr().out
    rate = config_from(folder).optimizer.base_learning_rate
    with StageCheckpoints(tmp_path / 'trained' / 'stage_1' / 'checkpoints') as checkpoints:
        trained = checkpoints.read('params')
    change = max(
        np.abs(a - b).max()
        for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(params), strict=True)
    )
    assert 0 < change < 4 * rate


def test_the_work_directory_of_an_evaluation_is_no_start_of_training(folder, tmp_path, params):
    with StageCheckpoints(tmp_path / 'stage_1' / 'checkpoints') as checkpoints:
        checkpoints.save_weights(0, params)  # As --mode=evaluate leaves it.
    (tmp_path / 'config.json').write_text(json.dumps(config_from(folder).to_dict()))
    with pytest.raises(ValueError, match='holds the scores of the pretrained model .* another --w'):
        main.run(config_from(folder), str(tmp_path))


def test_a_method_with_other_layers_cannot_score_a_pretrained_model(folder, tmp_path):
    config = config_from(folder, **{'method.name': 'eclipse'})
    with pytest.raises(ValueError, match='other layers than .* choose a method.name that adds'):
        main.run(config, str(tmp_path / 'run'), mode='evaluate')
    assert not list((tmp_path / 'run').rglob('checkpoints'))


def test_settings_of_a_pretrained_model_are_its_own(folder, tmp_path, capsys):
    arguments = [f'--checkpoint={folder}', '--config=shapes_cps_8_2', f'--out={tmp_path / "out"}']
    with pytest.raises(SystemExit):
        predict.main([*arguments, f'--images={tmp_path}', '--config.model.num_queries=7'])
    assert 'error: model.num_queries cannot be changed: ' in capsys.readouterr().err


@pytest.mark.slow
def test_evaluate_scores_the_run_that_began_from_a_pretrained_model(folder, tmp_path, monkeypatch):
    main.run(config_from(folder), str(tmp_path))
    trained = (tmp_path / 'stage_1' / 'evaluation.json').read_text()
    monkeypatch.setattr(trainer.Trainer, 'train_stage', None)
    main.run(config_from(folder), str(tmp_path), mode='evaluate')
    assert (tmp_path / 'stage_1' / 'evaluation.json').read_text() == trained


def test_a_stage_is_exported_with_the_classes_and_image_sides_of_its_run(tmp_path, params):
    config = config_from('', **{'protocol.base': 8, 'protocol.increment': 2})
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.json').write_text(json.dumps(config.to_dict()))
    entries = json.dumps(category_entries(CLASSES))
    (tmp_path / 'run' / 'categories.json').write_text(entries)
    with StageCheckpoints(tmp_path / 'run' / 'stage_2' / 'checkpoints') as checkpoints:
        checkpoints.save_weights(0, params)
    convert.export_model(str(tmp_path / 'run' / 'stage_2'), str(tmp_path / 'out'))
    model = pretrained.read(tmp_path / 'out')
    assert model.class_names == CLASSES.names
    assert model.image_sides == {'short_side': 64, 'max_side': 64}
    rows, trained = (tree['heads']['class_head']['dense'] for tree in (model.params, params))
    learned = [*range(10), 12]  # "No object" is last.
    np.testing.assert_array_equal(rows['kernel'][:, learned], trained['kernel'][:, learned])
    np.testing.assert_array_equal(rows['bias'][learned], trained['bias'][learned])
    assert (rows['kernel'][:, 10:12] == 0).all() and (rows['bias'][10:12] < -1000).all()
    for folder in ('out', 'run'):
        before = (tmp_path / folder / 'config.json').read_text()
        with pytest.raises(ValueError, match=f'{folder} exists already; choose a new folder'):
            convert.export_model(str(tmp_path / 'run' / 'stage_2'), str(tmp_path / folder))
        assert (tmp_path / folder / 'config.json').read_text() == before


@pytest.mark.slow
def test_a_continual_run_starts_from_a_pretrained_model_of_other_classes(params, tmp_path, capsys):
    hugging_face.write(tmp_path / 'model', params, [f'class {label}' for label in range(12)])
    protocol = {'protocol.base': 8, 'protocol.increment': 4, 'method.name': 'plop'}
    results = main.run(config_from(tmp_path / 'model', **protocol), str(tmp_path / 'run'))
    printed = capsys.readouterr().out
    assert printed.count(f'starting from {tmp_path / "model"}; class head replaced, its class') == 1
    assert [stage['stage'] for stage in results['stages']] == [1, 2]
    assert results['stages'][1]['pq']['novel'] is not None


def test_a_model_of_another_network_is_an_error(folder, tmp_path):
    config = config_from(folder)
    config.model.num_queries = 20
    message = r'mask2former has num_queries=12, .* is 20; set --config.model.num_queries=12'
    with pytest.raises(ValueError, match=message):
        main.run(config, str(tmp_path / 'run'))


def test_the_class_head_is_replaced_where_the_classes_differ(folder, params):
    model = pretrained.read(folder)
    fresh = jax.tree.map(np.zeros_like, params)
    assert initial_weights.head_difference(model, CLASSES) is None
    kept = initial_weights.with_pretrained(fresh, model, CLASSES)
    jax.tree.map(np.testing.assert_array_equal, kept, params)
    renamed = named_categories(['other', *CLASSES.names[1:]])
    assert 'label 0 is' in initial_weights.head_difference(model, renamed)
    replaced = initial_weights.with_pretrained(fresh, model, renamed)
    assert not np.any(replaced['heads']['class_head']['dense']['kernel'])
    np.testing.assert_array_equal(
        replaced['heads']['mask_head']['layer0']['dense']['kernel'],
        params['heads']['mask_head']['layer0']['dense']['kernel'],
    )


def test_synonyms_and_case_do_not_make_classes_differ():
    assert first_difference(['door;double door', 'Road'], ['door', 'road, route']) is None
    assert first_difference(['door', 'road'], ['road', 'door']) == "label 0 is 'door' and 'road'"
    assert first_difference(['door'], ['door', 'road']) == '1 classes and 2'


def test_stuff_is_known_for_coco_and_otherwise_everything_is_a_thing():
    coco = named_categories(['person', *map(str, range(131)), 'rug-merged'])
    assert sum(coco.is_thing) == 80 and coco.is_thing[79] and not coco.is_thing[80]
    own = named_categories(['cat', 'dog', 'cat'])
    assert own.is_thing == (True,) * 3 and own.names == ('cat', 'dog', 'cat (2)')
