"""Runs that train on images of past stages again."""

import json

import numpy as np
import pytest
import runs
from tiny import tiny_config

from simcis_jax.checkpointing import StageCheckpoints
from simcis_jax.data.shapes import Shapes
from simcis_jax.data.storage import stored_bytes
from simcis_jax.settings import from_config
from simcis_jax.trainer import Trainer
from simcis_jax.workdir import Workdir

IMAGES = 6


@pytest.fixture(scope='module')
def trainer_and_results(finished, tmp_path_factory):
    changes = {'training.init_from': str(finished[0] / 'stage_1'), 'protocol.replay_images': IMAGES}
    config = tiny_config(**changes).to_dict()
    with Workdir(tmp_path_factory.mktemp('replay') / 'whole', config) as workdir:
        trainer = Trainer(from_config(config), workdir)
        return trainer, config, trainer.run()


def test_a_run_tells_what_each_stage_replays_and_its_bytes(trainer_and_results, finished):
    trainer, _, results = trainer_and_results
    root = trainer.workdir.root
    assert len(results['stages']) == 3 and not (root / 'stage_1' / 'replay.json').exists()
    images = trainer.train_source
    names = np.array(images.categories.names)
    index_of = {images[i].image_id: i for i in range(len(images))}
    for number in (2, 3):
        replayed = json.loads((root / f'stage_{number}' / 'replay.json').read_text())
        memory = trainer.image_memories[number - 1]
        entries = {index_of[entry['image_id']]: entry for entry in replayed['images']}
        assert replayed['num_images'] == IMAGES == len(entries) and entries.keys() == memory.keys()
        assert replayed['image_bytes'] == sum(stored_bytes(images, i, memory[i]) for i in memory)
        past = set(names[list(trainer.stages[number - 1].past)])
        for index, entry in entries.items():
            assert {*entry['classes']} <= past & {*names[list(images.classes_of(index))]}
        before = root if number > 2 else finished[0]
        with StageCheckpoints(before / f'stage_{number - 1}' / 'checkpoints') as checkpoints:
            bank = checkpoints.read('memory')
        slots, width = bank['queries'].shape[1:]
        stored = sum(min(int(n), slots) for n in bank['written'])
        assert replayed['queries'] == stored > 0
        assert replayed['query_bytes'] == 4 * stored * width + 2 * 4 * len(names)


def test_replayed_images_change_what_is_learned(trainer_and_results, finished):
    ours, without = (runs.leaves(root, stage=2) for root in (
        trainer_and_results[0].workdir.root, finished[0]
    ))  # fmt: skip
    assert any(not np.array_equal(a, b) for a, b in zip(ours, without, strict=True))


def test_an_interrupted_stage_goes_on_with_the_same_images(
    trainer_and_results, tmp_path, monkeypatch
):
    trainer, config, results = trainer_and_results
    whole = trainer.workdir.root
    put_batch, calls = Trainer.train_step_inputs, []

    def crash(self, batch):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError('the machine is gone')
        return put_batch(self, batch)

    with Workdir(tmp_path / 'run', config) as workdir:
        monkeypatch.setattr(trainer, 'workdir', workdir)
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, 'train_step_inputs', crash)
            with pytest.raises(RuntimeError):
                trainer.run()
        assert trainer.run() == results
    runs.assert_same(tmp_path / 'run', whole)
    for number in (2, 3):
        texts = [
            (root / f'stage_{number}/replay.json').read_text() for root in (workdir.root, whole)
        ]
        assert texts[0] == texts[1]


def test_a_memory_without_room_for_an_image_is_an_error_before_anything_is_trained(tmp_path):
    config = tiny_config(**{'protocol.replay_megabytes': 1e-4}).to_dict()
    with pytest.raises(ValueError, match='replay_megabytes=0.0001 has no room for the first image'):
        Trainer(from_config(config), Workdir(tmp_path, config))


def test_megabytes_bound_the_bytes_of_real_pngs(tmp_path):
    config = tiny_config(**{'protocol.replay_megabytes': 0.02}).to_dict()
    trainer = Trainer(from_config(config), Workdir(tmp_path, config))
    images = trainer.train_source
    assert isinstance(images, Shapes)
    for memory in trainer.image_memories[1:]:
        used = sum(stored_bytes(images, index, labels) for index, labels in memory.items())
        assert 0.01 * 2**20 < used <= 0.02 * 2**20
