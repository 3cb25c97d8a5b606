"""A run whose model has random weights, and segments nevertheless."""

from random_params import random_params
from tiny import tiny_config

from simcis_jax.settings.validated import from_config
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.trainer import Trainer
from simcis_jax.training.workdir import Workdir

# Random weights give low scores and overlapping masks: all are shown that are not nearly the same.
SHOW_ALL = {
    'evaluation.object_mask_threshold': 0.0,
    'evaluation.overlap_threshold': 0.0,
    'evaluation.duplicate_overlap': 0.95,
}


def random_run(root):
    """Writes a run whose stage 2 has random weights; returns its work directory and its trainer."""
    config = tiny_config(**SHOW_ALL).to_dict()
    trainer = Trainer(from_config(config), Workdir(root, config))
    trainer.start()
    with StageCheckpoints(trainer.workdir.stage(2).checkpoints) as checkpoints:
        params = random_params(lambda key: trainer.states.initialize()[0], seed=7, scale=0.5)
        checkpoints.save_weights(0, params)
    return root, trainer
