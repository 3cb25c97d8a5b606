"""The programs of a run's stages."""

import pytest
from tiny import tiny_config

from simcis_jax.runtime.compilation import shared
from simcis_jax.settings.validated import from_config
from simcis_jax.training import programs
from simcis_jax.training.trainer import Trainer
from simcis_jax.training.workdir import Workdir


@pytest.mark.parametrize(
    ('changes', 'stops'),
    [
        ({'training.stop_gradient_from_stage': 1}, [True, True, True]),
        ({'training.stop_gradient_from_stage': 2}, [False, True, True]),
        ({'training.stop_gradient_from_stage': 3}, [False, False, True]),
        ({'model.stop_gradient': False}, [False, False, False]),
    ],
)
def test_the_stop_gradient_begins_at_its_stage(changes, stops, monkeypatch, tmp_path):
    config = tiny_config(**changes).to_dict()
    monkeypatch.setattr(programs, 'make_train_step', lambda model, *_, **__: model.stop_gradient)
    trainer = Trainer(from_config(config), Workdir(tmp_path, config))
    assert trainer.train_steps == stops
    shared.cache_clear()
