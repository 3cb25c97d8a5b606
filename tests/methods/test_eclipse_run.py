"""Runs of ECLIPSE: what a stage trains, what its checkpoint holds, and what it is good for."""

import jax
import numpy as np
import pytest
import runs
from flax.traverse_util import flatten_dict
from tiny import plain_config

from simcis_jax import main, predict
from simcis_jax.settings.validated import from_config
from simcis_jax.training.checkpointing import StageCheckpoints


def config_of_run(**changes):
    settings = {'method.eclipse.prompts_per_stage': 3, 'evaluation.every': 2} | changes
    return plain_config('eclipse', **settings)


def read(workdir, stage, item):
    with StageCheckpoints(workdir / f'stage_{stage}' / 'checkpoints') as checkpoints:
        return checkpoints.read(item)


def params_of(workdir, stage):
    return flatten_dict(read(workdir, stage, 'params'), sep='/')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The folder and the results of a run of three stages."""
    folder = tmp_path_factory.mktemp('eclipse')
    return folder, main.run(config_of_run(), str(folder))


@pytest.mark.slow
def test_a_later_stage_trains_its_prompts_alone(run):
    folder, results = run
    assert len(results['stages']) == 3
    first, second, third = (params_of(folder, stage) for stage in (1, 2, 3))
    for before, after in ((first, second), (second, third)):
        changed = {path for path in before if (before[path] != after[path]).any()}
        kept = {'newest', 'finished', 'heads'}
        assert {path.split('/')[0] for path in changed} <= kept
        assert {path for path in changed if path.startswith('heads/')} == {
            path for path in before if path.startswith('heads/no_object/')
        }
    for path, stack in third.items():  # It keeps the prompts of stage 2.
        if path.startswith('finished/'):
            newest = second[path.replace('finished', 'newest')]
            np.testing.assert_array_equal(stack[0], newest)
            np.testing.assert_array_equal(stack[1], second[path][1])
    state = read(folder, 3, 'rest')['opt_state']
    trained = sum(
        x.size for path, x in third.items() if path.startswith(('newest/', 'heads/no_object/'))
    )
    moments = sum(x.size for x in jax.tree.leaves(state))
    assert 2 * trained <= moments <= 2 * trained + 9
    logged = runs.records(folder)
    trained_on = [record for record in logged if 'class' in record]
    assert {record['stage'] for record in trained_on} == {1, 2, 3}
    assert all(record['skipped_steps'] == 0 for record in trained_on)


@pytest.mark.slow
def test_a_run_continues_from_a_stage_of_another_run(run, tmp_path):
    source = run[0] / 'stage_2'
    results = main.run(config_of_run(**{'training.init_from': str(source)}), str(tmp_path))
    assert results['stages'] == run[1]['stages']
    for path, x in params_of(run[0], 3).items():
        np.testing.assert_array_equal(params_of(tmp_path, 3)[path], x)


@pytest.mark.slow
def test_a_stage_segments_images(run):
    predictor = predict.load(run[0] / 'stage_2', object_mask_threshold=0.0, overlap_threshold=0.0)
    result = predictor(np.full((64, 64, 3), 128, np.uint8))
    assert result.segment_map.shape == (64, 64) and max(result.labels, default=0) < 10


def test_what_does_not_fit_is_refused():
    changes = {'model.head': 'sigmoid', 'model.class_prior': None, 'protocol.mask_unseen': False}
    with pytest.raises(ValueError, match="mask_unseen=False must be True with method.name='ecl"):
        from_config(config_of_run(**changes).to_dict())
    changes = {'model.boxes': True}
    with pytest.raises(ValueError, match="model.boxes=True must be False with method.name='ecl"):
        from_config(config_of_run(**changes).to_dict())
