"""Evaluations inside a stage: logged scores, the best weights, interruptions, profiles."""

import json

import pytest
import runs
from tiny import tiny_config

from simcis_jax import main
from simcis_jax.evaluation.tasks import SemanticTask
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.find_stage import find_stage

CHANGES = {
    'protocol.base': 12,
    'training.base_steps': 7,
    'training.checkpoint_every': 100,
    'training.keep_best': 'miou',
    'training.profile_steps': (2, 3),
    'evaluation.tasks': ('semantic',),
    'evaluation.every': 3,
    'evaluation.num_images': 4,
    'evaluation.semantic_threshold': 0.0,  # So that something is found after so few steps.
    'evaluation.overlap_threshold': 0.0,
}


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('in_stage') / 'run'
    return workdir, main.run(tiny_config(**CHANGES), str(workdir))


def scores(workdir):
    return {r['step']: r['val_miou'] for r in runs.records(workdir) if 'val_miou' in r}


def test_scores_measurements_the_best_weights_and_a_profile_are_kept(undisturbed):
    workdir, results = undisturbed
    by_step = scores(workdir)
    assert list(by_step) == [3, 6] and max(by_step.values()) > 0

    folder = find_stage(workdir / 'stage_1' / 'best', '--checkpoint')
    best = max(by_step, key=by_step.get)
    assert [path.name for path in folder.checkpoints.iterdir()] == [str(best)]
    with StageCheckpoints(folder.checkpoints) as kept:
        assert kept.has('params') and not kept.has('rest')

    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    steps = [record for record in map(json.loads, lines) if 'total' in record]
    for record in steps:
        assert record['images_per_second'] == pytest.approx(4 * record['steps_per_second'])
        assert 0 <= record['data_wait'] <= 1
    assert sum(record['evaluation_seconds'] for record in steps) > 0
    assert sum(record['checkpoint_seconds'] for record in steps) > 0

    profile = workdir / 'stage_1' / 'profile'
    assert len(list(profile.rglob('*.xplane.pb'))) == 1
    assert len(list(profile.rglob('*.trace.json.gz'))) == 1

    changes = CHANGES | {'evaluation.semantic_threshold': 0.2}
    assert main.run(tiny_config(**changes), str(workdir)) == results  # Finished stages keep theirs.


@pytest.mark.slow
@pytest.mark.parametrize('after', [2, 5])  # Images: inside the first and second evaluation.
def test_an_interrupted_evaluation_changes_no_result(undisturbed, tmp_path, monkeypatch, after):
    images, count = [], SemanticTask.count

    def kill(self, *arguments):
        images.append(1)
        if len(images) == after + 1:
            raise SystemExit(137)
        return count(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(SemanticTask, 'count', kill)
        with pytest.raises(SystemExit):
            main.run(tiny_config(**CHANGES), str(tmp_path))
    assert list((tmp_path / 'stage_1' / 'counts' / 'process_0').glob('*.json'))
    assert main.run(tiny_config(**CHANGES), str(tmp_path)) == undisturbed[1]
    runs.assert_same(tmp_path, undisturbed[0], stage=1)
    assert not (tmp_path / 'stage_1' / 'counts').exists()
