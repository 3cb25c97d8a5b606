"""Runs that replay images of past stages."""

import json

import numpy as np
import pytest
import runs
from tiny import tiny_config

from simcis_jax.data.shapes import Shapes
from simcis_jax.data.storage_size import stored_bytes
from simcis_jax.settings.validated import from_config
from simcis_jax.training import replay
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.stage_folder import StageFolder
from simcis_jax.training.trainer import Trainer
from simcis_jax.training.workdir import Workdir

IMAGES = 6


def train_stage_2(trainer, config, folder):
    """Trains stage 2 in a folder with a shared, compiled trainer; returns its replay.json."""
    with Workdir(folder, config) as workdir, pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, 'workdir', workdir)
        assert trainer.start() == 1
        base, stage = trainer.stages[:2]
        trainer.train_stage(stage, trainer.states.finished(base))
    return json.loads((folder / 'stage_2' / 'replay.json').read_text())


@pytest.fixture(scope='module')
def replaying(finished, tmp_path_factory):
    """A trainer, its config, the work directory of its stage 2, and the replay.json of that."""
    changes = {'training.init_from': str(finished[0] / 'stage_1'), 'protocol.replay_images': IMAGES}
    config = tiny_config(**changes).to_dict()
    folder = tmp_path_factory.mktemp('replay') / 'whole'
    trainer = Trainer(from_config(config), Workdir(folder, config))
    return trainer, config, folder, train_stage_2(trainer, config, folder)


def test_replay_json_lists_the_replayed_images_and_their_bytes(replaying, finished):
    trainer, _, folder, replayed = replaying
    memory, images = trainer.image_memories[1], trainer.train_source
    index_of = {images[i].image_id: i for i in range(len(images))}
    entries = {index_of[entry['image_id']]: entry for entry in replayed['images']}
    assert replayed['num_images'] == IMAGES and entries.keys() == memory.keys()
    assert replayed['image_bytes'] == sum(stored_bytes(images, i, memory[i]) for i in memory)
    names = np.array(images.categories.names)
    past = set(trainer.stages[1].past)
    for index, entry in entries.items():
        assert entry['classes'] == names[sorted(past & images.classes_of(index))].tolist()
    assert not (folder / 'stage_1' / 'replay.json').exists()


def test_replay_json_counts_the_stored_queries(replaying, finished):
    with StageCheckpoints(finished[0] / 'stage_1' / 'checkpoints') as checkpoints:
        bank = checkpoints.read('memory')
    slots, hidden_dim = bank['queries'].shape[1:]
    stored = sum(min(int(n), slots) for n in bank['written'])
    assert replaying[3]['queries'] == stored > 0
    assert replaying[3]['query_bytes'] == 4 * stored * hidden_dim + 2 * 4 * len(bank['written'])


def test_replayed_images_change_the_trained_parameters(replaying, finished):
    ours, without = (runs.leaves(folder, stage=2) for folder in (replaying[2], finished[0]))
    assert any(not np.array_equal(a, b) for a, b in zip(ours, without, strict=True))


@pytest.mark.slow
def test_an_interrupted_stage_resumes_with_the_same_images(replaying, tmp_path, monkeypatch):
    trainer, config, whole, replayed = replaying

    def crash(_):
        raise RuntimeError('the machine is gone')

    with monkeypatch.context() as patch:
        runs.at_step(patch, 4, crash)
        with pytest.raises(RuntimeError):
            train_stage_2(trainer, config, tmp_path / 'run')
    assert train_stage_2(trainer, config, tmp_path / 'run') == replayed
    for a, b in zip(*(runs.leaves(f, stage=2) for f in (tmp_path / 'run', whole)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_limit_too_small_for_one_image_is_an_error_before_training(tmp_path):
    config = tiny_config(**{'protocol.replay_megabytes': 1e-4}).to_dict()
    with pytest.raises(ValueError, match='replay_megabytes=0.0001 has no room for the first image'):
        Trainer(from_config(config), Workdir(tmp_path, config))


def test_replayed_images_stay_within_the_megabyte_limit(tmp_path):
    config = tiny_config(**{'protocol.replay_megabytes': 0.02}).to_dict()
    trainer = Trainer(from_config(config), Workdir(tmp_path, config))
    images = trainer.train_source
    assert isinstance(images, Shapes)
    for memory in trainer.image_memories[1:]:
        used = sum(stored_bytes(images, index, labels) for index, labels in memory.items())
        assert 0.01e6 < used <= 0.02e6


@pytest.mark.parametrize('damage', [None, '{', '{"0: [0]": null}'])
def test_the_sizes_of_images_are_read_once_per_run(tmp_path, monkeypatch, damage):
    config = tiny_config(**{'protocol.replay_megabytes': 0.02}).to_dict()
    reads, size = [], replay.stored_bytes
    monkeypatch.setattr(replay, 'stored_bytes', lambda *image: reads.append(image) or size(*image))

    def memories():
        del reads[:]
        with Workdir(tmp_path / 'run', config) as workdir:
            trainer = Trainer(from_config(config), workdir)
            trainer.start()
        return trainer.image_memories

    first = memories()
    assert reads
    if damage is not None:
        (tmp_path / 'run' / 'replay_sizes.json').write_text(damage)
    for is_damaged in (damage is not None, False):
        assert memories() == first
        assert bool(reads) == is_damaged


def test_replayed_images_are_read_once_for_replay_json(tmp_path, monkeypatch):
    reads, read = [], Shapes.__getitem__
    monkeypatch.setattr(Shapes, '__getitem__', lambda self, i: reads.append(i) or read(self, i))
    source, folder = Shapes('train', size=64, num_images=6), StageFolder(tmp_path)
    memory = {index: source.classes_of(index) for index in (1, 4)}
    del reads[:]
    first = replay.record(folder, source, memory, {'queries': 3})
    assert set(reads) == {1, 4} and first['num_images'] == 2
    del reads[:]
    assert replay.record(folder, source, memory, {'queries': 3}) == first
    assert reads == []
    for change in ('{', '{}', json.dumps(first | {'queries': 2})):
        (tmp_path / 'replay.json').write_text(change)
        assert replay.record(folder, source, memory, {'queries': 3}) == first
        assert json.loads((tmp_path / 'replay.json').read_text()) == first
    assert set(reads) == {1, 4}
