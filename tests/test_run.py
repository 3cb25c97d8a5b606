"""A miniature run of three stages, from the config to the results table."""

import json
import re

import cv2
import jax
import numpy as np
import pytest
import runs
from tiny import tiny_config

from simcis_jax import main
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.trainer import Trainer


def test_results_hold_every_stage_group_and_the_average(finished):
    workdir, results, _ = finished
    assert json.loads((workdir / 'results.json').read_text()) == results
    assert len(results['stages']) == 3
    for stage in results['stages']:
        for metric in ('pq', 'sq', 'rq'):
            assert {'base', 'novel', 'past', 'current', 'all', 'all_things'} <= set(stage[metric])
    assert results['stages'][0]['pq']['novel'] is None
    assert len(results['stages'][2]['per_class']) == 12
    means = [stage['pq']['all'] for stage in results['stages']]
    assert results['average']['pq'] == pytest.approx(np.mean(means))
    table = (workdir / 'results.txt').read_text()
    for metric, title in (('pq_seen_only', 'PQ'), ('miou', 'mIoU'), ('ap75', 'AP')):
        assert results['stages'][2][metric]['all'] is not None
        assert f'{title} at stage' in table


def test_the_step_is_traced_twice_in_a_run(finished):
    assert finished[2] == 2  # Without and with a teacher.


def test_every_stage_writes_a_picture(finished):
    for number in (1, 2, 3):
        picture = cv2.imread(str(finished[0] / f'stage_{number}' / 'predictions.png'))
        assert picture is not None and picture.std() > 10


def test_losses_are_logged_for_every_stage(finished):
    lines = (finished[0] / 'metrics.jsonl').read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [(r['stage'], r['step']) for r in records] == [
        (1, 2), (1, 4), (1, 6), (2, 2), (2, 4), (3, 2), (3, 4),
    ]  # fmt: skip
    assert all(np.isfinite(list(r.values())).all() for r in records)
    assert 'csl' not in records[0] and records[-1]['csl'] >= 0
    assert any((finished[0] / 'tensorboard').rglob('events.*'))


def test_the_bank_is_in_the_checkpoint(finished):
    bank = runs.newest_state(finished[0])['memory']
    written = np.asarray(bank['written'])
    assert written.sum() > 0
    filled = np.abs(np.asarray(bank['queries'])).sum(axis=(1, 2)) > 0
    np.testing.assert_array_equal(filled, written > 0)
    assert (np.asarray(bank['counts'])[10:] == 0).all()  # Stage 3 counts past classes only.


def test_every_stage_has_its_own_random_key(finished):
    keys = [runs.newest_state(finished[0], stage)['rest']['key'] for stage in (1, 2, 3)]
    assert len({jax.random.key_data(key).tobytes() for key in keys}) == 3


def test_a_finished_run_prints_its_table_and_trains_nothing(finished, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, 'train_stage', None)
    assert main.run(tiny_config(), str(finished[0])) == finished[1]
    assert re.search(r'^avg', capsys.readouterr().out, re.MULTILINE)


def test_a_run_with_another_config_is_refused(finished):
    with pytest.raises(ValueError, match=r'another config: training\.seed is 0 there and 1 now'):
        main.run(tiny_config(**{'training.seed': 1}), str(finished[0]))


def test_the_last_checkpoint_of_a_stage_is_kept(finished):
    with StageCheckpoints(finished[0] / 'stage_1' / 'checkpoints') as checkpoints:
        assert checkpoints.latest_step == 6


@pytest.mark.slow
def test_another_method_continues_from_a_finished_stage(finished, tmp_path):
    base_stage = finished[0] / 'stage_1'
    changes = {'method.name': 'finetune', 'training.init_from': str(base_stage)}
    results = main.run(tiny_config(**changes), str(tmp_path / 'finetune'))
    assert results['stages'][0] == finished[1]['stages'][0]
    records = (tmp_path / 'finetune' / 'metrics.jsonl').read_text().splitlines()
    assert {json.loads(record)['stage'] for record in records} == {2, 3}
    assert not any('csl' in json.loads(record) for record in records)


def test_init_from_must_be_a_finished_stage(tmp_path):
    with pytest.raises(ValueError, match='training.init_from=.*must be a folder stage_N'):
        main.run(tiny_config(**{'training.init_from': str(tmp_path)}), str(tmp_path / 'run'))
