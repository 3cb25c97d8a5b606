"""Which past images a stage replays, and with which labels."""

import collections

import numpy as np
import pytest

from simcis_jax.continual.image_memory import class_balanced, image_memories, union
from simcis_jax.continual.protocol import SETTINGS, labelled_classes, stage_images
from simcis_jax.continual.stages import make_stages

CLASSES, IMAGES = 12, 400
STAGES = make_stages(CLASSES, base=6, increment=2, order=(3, 1, 4, 0, 5, 9, 2, 6, 8, 7, 10, 11))


@pytest.fixture(scope='module')
def image_classes():
    rng = np.random.default_rng(0)
    share = rng.permutation(np.geomspace(0.02, 0.6, CLASSES))  # Rare and common classes.
    return [frozenset(np.flatnonzero(rng.random(CLASSES) < share).tolist()) for _ in range(IMAGES)]


def ranks(seed=0):
    return np.random.default_rng(seed).permutation(IMAGES)


def size_of(index, classes):
    return 100 + index % 7 + len(classes)


def by_hand(image_classes, stage, setting):
    """The images of a stage with their labelled classes, one by one."""
    labelled = set(labelled_classes(stage, setting))
    return {
        i: image_classes[i] & labelled for i in stage_images(image_classes, stage, setting).tolist()
    }


@pytest.mark.parametrize('setting', SETTINGS)
@pytest.mark.parametrize('num_images', [1, 5, 40, 10_000])
def test_a_memory_holds_kept_or_current_images_with_the_labels_they_had(
    image_classes, setting, num_images
):
    memories = image_memories(image_classes, STAGES, setting, ranks=ranks(), num_images=num_images)
    assert len(memories) == len(STAGES) and memories[0] == {}
    for stage, before, after in zip(STAGES, memories, memories[1:], strict=False):
        shown = by_hand(image_classes, stage, setting)
        assert len(after) == min(num_images, len({*before, *shown}))
        for index, labels in after.items():
            assert index in before or index in shown
            # Exactly the labels of the stages that have shown this image since it was kept.
            assert labels == before.get(index, set()) | shown.get(index, set())
            assert labels and labels <= set(stage.seen)


def test_a_discarded_image_returns_with_the_labels_of_its_new_stage_only(image_classes):
    # Room for one image: the other, shown in stages 1 and 2, loses its labels of stage 1.
    first, second = STAGES[0].current[0], STAGES[1].current[0]
    images = [frozenset({first}), frozenset({first, second})]
    memories = image_memories(images, STAGES[:3], ranks=[0, 1], num_images=1)
    assert memories[1] == {0: {first}}
    assert memories[2] in ({0: {first}}, {1: {second}})
    everything = image_memories(images, STAGES[:3], ranks=[0, 1], num_images=2)
    assert everything[2] == {0: {first}, 1: {first, second}}


def test_memories_are_deterministic_and_independent_of_later_stages(image_classes):
    def memories(seed=0, num_stages=4):
        return image_memories(image_classes, STAGES[:num_stages], ranks=ranks(seed), num_images=20)

    assert memories() == memories()
    assert [*memories()[2]] == [*memories()[2]]  # Batches depend on the order of images.
    assert memories(seed=1)[1] != memories()[1]
    assert memories(num_stages=3) == memories()[:3]


def test_classes_are_balanced_if_each_image_has_one_class():
    sizes = [50, 3, 20, 9]
    labels = np.repeat(np.arange(4), sizes)
    candidates = {i: frozenset({int(label)}) for i, label in enumerate(labels)}
    order = list(class_balanced(candidates, np.random.default_rng(0).permutation(len(labels))))
    assert sorted(order) == list(range(len(labels)))
    for number in range(1, len(order) + 1):
        counts = np.bincount(labels[order[:number]], minlength=4)
        open_classes = counts < sizes
        # No class is more than one image behind, unless it has no more candidates.
        if open_classes.any():
            assert counts.max() - counts[open_classes].min() <= 1


def test_rare_classes_are_kept_far_more_often_than_by_chance(image_classes):
    (_, memory, *_) = image_memories(image_classes, STAGES, ranks=ranks(), num_images=30)
    kept = collections.Counter(label for labels in memory.values() for label in labels)
    pool = by_hand(image_classes, STAGES[0], 'overlapped')
    available = collections.Counter(label for labels in pool.values() for label in labels)
    rarest = min(available, key=available.get)
    chance = 30 * available[rarest] / len(pool)
    assert kept[rarest] >= min(available[rarest], 30 // 6) > 2 * chance
    assert set(kept) == set(STAGES[0].current)


@pytest.mark.parametrize('num_bytes', [110, 1_000, 4_000.5])
@pytest.mark.parametrize('num_images', [0, 12])
def test_a_memory_is_limited_in_bytes_and_images(image_classes, num_bytes, num_images):
    memories = image_memories(
        image_classes, STAGES, ranks=ranks(),
        num_images=num_images, num_bytes=num_bytes, bytes_of=size_of,
    )  # fmt: skip
    for memory in memories[1:]:
        used = sum(size_of(index, labels) for index, labels in memory.items())
        assert used <= num_bytes and len(memory) <= (num_images or IMAGES)
        # No further image fits: each takes at most 118 bytes.
        assert used > num_bytes - 118 or len(memory) == num_images


def test_a_memory_too_small_for_one_image_is_an_error(image_classes):
    with pytest.raises(ValueError, match=r'protocol.replay_megabytes=0.0001 has no room for'):
        image_memories(image_classes, STAGES, ranks=ranks(), num_bytes=100, bytes_of=size_of)


def test_a_union_merges_the_labels_of_each_image():
    stage, memory = (
        {4: frozenset({1}), 2: frozenset({1})},
        {2: frozenset({0, 5}), 9: frozenset({0})},
    )
    both = union(stage, memory)
    assert both == {4: {1}, 2: {0, 1, 5}, 9: {0}} and [*both] == [4, 2, 9]
