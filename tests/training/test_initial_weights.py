"""Runs that start from pretrained weights; tests/test_plain_run.py has whole networks."""

import jax
import numpy as np
import pytest
from random_params import save_stage_2
from tiny import tiny_config

from simcis_jax.model.backbones import BACKBONES
from simcis_jax.settings.validated import from_config
from simcis_jax.training import initial_weights
from simcis_jax.training.stage_data import stage_arrays
from simcis_jax.training.trainer import Trainer
from simcis_jax.training.workdir import Workdir


def test_stage_1_starts_from_the_pretrained_backbone(tmp_path):
    folder, params, _ = save_stage_2(tmp_path / 'converted', 12)
    settings = tiny_config(**{'training.init_backbone': str(folder)}).to_dict()
    trainer = Trainer(from_config(settings), Workdir(tmp_path / 'run', settings))
    stage = trainer.stages[0]
    begun = trainer.states.begin(
        stage, None, None, stage_arrays(stage, len(trainer.categories), trainer.settings)
    ).params
    jax.tree.map(np.testing.assert_array_equal, begun['resnet'], params['resnet'])
    random = trainer.states.new(stage, None).params
    jax.tree.map(np.testing.assert_array_equal, begun['decoder'], random['decoder'])


def backbone_shapes(name, **changes):
    """The shapes of the parameters of a backbone."""
    backbone = BACKBONES[name]
    module = backbone.build(**backbone.settings | changes)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    return {backbone.family: jax.eval_shape(module.init, jax.random.key(0), image)['params']}


@pytest.mark.parametrize(
    ('held', 'changes', 'wanted', 'message'),
    [
        ('swin_small', {}, 'swin_t', 'is a swin_small, but model.backbone is swin_t; set --config'),
        ('resnet50', {}, 'swin_t', 'is a resnet50, but model.backbone is swin_t; set'),
        ('swin_small', {'window': 7}, 'swin_t', 'window 7 is none of the backbones swin_t, swin_s'),
        (
            'resnet50',
            {'stem_width': 32},
            'resnet50',
            r'is a changed resnet50: res2_0/conv1/conv/kernel has shape \(1, 1, 32, 64\) instead',
        ),
    ],
)
def test_a_backbone_of_another_network_is_an_error(monkeypatch, held, changes, wanted, message):
    monkeypatch.setattr(
        initial_weights, 'read_backbone', lambda path: backbone_shapes(held, **changes)
    )
    with pytest.raises(ValueError, match=f'training.init_backbone=FILE.*{message}'):
        initial_weights.with_backbone(backbone_shapes(wanted), 'FILE')


def test_missing_weights_of_a_backbone_are_named_with_the_way_out():
    message = (
        'training.init_backbone=no.pkl does not exist; .* or --config.training.init_backbone= '
    )
    with pytest.raises(OSError, match=message):
        initial_weights.with_backbone({}, 'no.pkl')
