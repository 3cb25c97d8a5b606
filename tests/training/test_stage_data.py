"""The images, batches and class statistics of a stage."""

import collections
import dataclasses

import jax
import numpy as np
import pytest
from tiny import tiny_config

from simcis_jax.continual.stages import make_stages
from simcis_jax.data.shapes import Shapes
from simcis_jax.settings.validated import from_config
from simcis_jax.training.replay import image_memories
from simcis_jax.training.stage_data import check_images, statistics_batches, training_batches


@pytest.fixture(scope='module')
def images():
    return Shapes('train', size=32, num_images=30)


@pytest.fixture(scope='module')
def stages(images):
    return make_stages(len(images.categories), base=8, increment=2)


def tiny_settings(**changes):
    return from_config(tiny_config(**changes).to_dict())


def test_a_stage_without_an_image_is_an_error_before_training(images, stages):
    check_images(images, stages, tiny_settings())
    few = Shapes('train', size=32, num_images=1)
    with pytest.raises(ValueError, match=r'no image for stage \d, classes \[.*\], in the disjoint'):
        check_images(few, stages, tiny_settings(**{'protocol.setting': 'disjoint'}))


@pytest.mark.parametrize('limit', [1, 4, 7, 100])
def test_class_statistics_use_evenly_spaced_images_up_to_their_limit(
    images, stages, limit, monkeypatch
):
    read, read_image = set(), Shapes.__getitem__
    monkeypatch.setattr(Shapes, '__getitem__', lambda s, i: read.add(i) or read_image(s, i))
    config = tiny_settings(**{'training.statistics_images': limit})
    number, batches = statistics_batches(images, stages[0], config)
    assert 0 < number <= limit
    assert sum(int(real.sum()) for _, real in batches) == number
    assert len(read) == number
    if limit == 4:  # Nearly all 30 images show a base class, so every eighth is used.
        assert number >= 3 and min(read) < 10 and max(read) >= 20


def test_stages_with_the_same_images_shuffle_them_differently(images, stages):
    again = dataclasses.replace(stages[1], index=stages[1].index + 1)
    first, second = (
        training_batches(images, stage, tiny_settings()).at(0) for stage in (stages[1], again)
    )
    assert (first[1] != second[1]).any()
    assert (first[0].image != second[0].image).any()


def test_an_epoch_has_each_image_of_stage_and_memory_once_with_the_labels_of_both(images, stages):
    config = tiny_settings(**{'protocol.replay_images': 7, 'data.max_segments': 12})
    memories = image_memories(images, stages, config)
    assert [len(memory) for memory in memories] == [0, 7, 7]
    for stage, memory in zip(stages, memories, strict=True):
        current = frozenset(stage.current)
        shown = {i for i in range(len(images)) if current & images.classes_of(i)}
        batches = training_batches(images, stage, config, memory)
        epochs, num_images = 4, len(shown | memory.keys())
        order, found = [], collections.defaultdict(set)
        for position in range(epochs * num_images // config.training.batch_size):
            batch, indices = batches.at(position)
            order += indices.tolist()
            for index, labels in zip(indices.tolist(), batch.targets.labels.tolist(), strict=True):
                found[index] |= {*labels} - {-1}
        for start in range(0, len(order) - num_images, num_images):
            assert sorted(order[start : start + num_images]) == sorted(shown | memory.keys())
        for index, labels in found.items():
            told = (current if index in shown else set()) | memory.get(index, set())
            assert labels <= told & images.classes_of(index)
        # Random crops hide some of the replayed segments, but not all.
        assert bool(memory) == any(found[index] & {*stage.past} for index in memory)
        both = shown & memory.keys()
        assert bool(memory) == any(found[i] & current and found[i] - current for i in both)


def test_no_memory_changes_no_batch_and_a_memory_survives_a_resume(images, stages):
    config = tiny_settings(**{'protocol.replay_images': 7})
    memory = image_memories(images, stages, config)[1]
    assert image_memories(images, stages, tiny_settings()) == [{}] * len(stages)
    whole = training_batches(images, stages[1], config, memory)
    expected = [next(whole) for _ in range(6)]
    resumed = training_batches(images, stages[1], config, image_memories(images, stages, config)[1])
    resumed.seek(4)
    for batch in expected[4:]:
        jax.tree.map(np.testing.assert_array_equal, next(resumed), batch)
    whole.close()
    resumed.close()


def test_an_unknown_setting_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="protocol.setting='overlap' must be one of .*'disjoint'"):
        tiny_settings(**{'protocol.setting': 'overlap'})
