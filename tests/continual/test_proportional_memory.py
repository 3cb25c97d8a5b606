"""The class-proportional memory against the choices of the published code, and by hand."""

from pathlib import Path

import numpy as np
import pytest

from simcis_jax.continual.image_memory import ReplayPool, image_memories
from simcis_jax.continual.proportional_memory import class_proportional, nearest_first
from simcis_jax.continual.stages import make_stages

GOLDEN = Path(__file__).parent.parent / 'methods' / 'golden' / 'balconpas.npz'


@pytest.fixture(scope='module')
def golden():
    return dict(np.load(GOLDEN))


@pytest.mark.parametrize('case', ['small', 'started', 'all_of_them'])
def test_the_choice_is_that_of_the_published_code(golden, case):
    counts, start, chosen, after = (
        golden[f'replay_{case}/{name}'] for name in ('counts', 'start', 'chosen', 'after')
    )
    target, total = counts.sum(axis=0) / counts.sum(), start.astype(int)
    images = dict(enumerate(counts))
    order = list(nearest_first(images, len(chosen), total, target))
    np.testing.assert_array_equal(order, chosen)
    np.testing.assert_array_equal(total, after)
    assert images.keys() == set(range(len(counts))) - set(order)


def ranks_of(*pools):
    """The ranks of 700 images, in which those of each pool keep their order."""
    ranks = np.empty(700, int)
    order = dict.fromkeys([*np.concatenate(pools).tolist(), *range(700)])
    ranks[list(order)] = np.arange(700)
    return ranks


def test_the_memories_of_two_stages_are_those_of_the_published_code(golden):
    recorded = {
        name.removeprefix('replay_end_to_end/'): x
        for name, x in golden.items()
        if name.startswith('replay_end_to_end/')
    }
    counts = recorded['counts']
    segments = [np.repeat(np.arange(150), row).tolist() for row in counts]
    stages = make_stages(150, base=50, increment=50)
    shown = [
        {
            i: frozenset(x) & set(stage.current)
            for i, x in enumerate(segments)
            if {*x} & {*stage.current}
        }
        for stage in stages[:2]
    ]
    first = ReplayPool(
        stages[0], {}, shown[:1], ranks_of(recorded['memory1/pool']), 300, counts.__getitem__
    )
    order = list(class_proportional(first))[:300]
    np.testing.assert_array_equal(order, recorded['memory1/order'])
    kept = {index: shown[0][index] for index in order}
    ranks = ranks_of(recorded['memory2/pool_kept'], recorded['memory2/pool_new'])
    second = ReplayPool(stages[1], kept, shown, ranks, 300, counts.__getitem__)
    order = list(class_proportional(second))
    np.testing.assert_array_equal(order[:150], recorded['memory2/order_kept'])
    np.testing.assert_array_equal(order[150:300], recorded['memory2/order_new'])
    assert sorted(order) == sorted(kept.keys() | shown[1].keys())


def counts_of(index):
    """The segments of each class in six images; class 9 is never labelled."""
    labels = [[0], [0, 0, 1], [1, 9, 9], [2], [2, 2, 3], [0, 3]][index]
    return np.bincount(labels, minlength=10)


STAGES = make_stages(10, base=2, increment=2)


def test_shares_are_nearer_to_those_of_all_segments_than_in_a_balanced_memory():
    rng, classes = np.random.default_rng(0), np.arange(10)
    counts = rng.poisson(np.geomspace(0.15, 0.9, 10), (400, 10)) * rng.integers(1, 4, (400, 10))
    stages = make_stages(10, base=6, increment=2)

    def distances(order):
        """Between the shares in each memory and those among all segments so far."""
        memories = image_memories(
            [frozenset(np.flatnonzero(row).tolist()) for row in counts],
            stages,
            ranks=np.random.default_rng(1).permutation(400),
            num_images=40,
            counts_of=counts.__getitem__,
            order=order,
        )
        for stage, memory in zip(stages, memories[1:], strict=False):
            assert len(memory) == 40
            held = sum(np.isin(classes, list(memory[index])) * counts[index] for index in memory)
            everything = np.isin(classes, stage.seen) * counts.sum(axis=0)
            yield np.abs(held / held.sum() - everything / everything.sum()).sum()

    proportional, balanced = list(distances(class_proportional)), list(distances(None))
    assert proportional[0] < 0.05 and balanced[0] > 0.2
    assert all(ours < theirs for ours, theirs in zip(proportional, balanced, strict=True))


def test_kept_images_have_the_share_of_past_classes_and_both_pools_fill_up():
    kept = {index: frozenset({0, 1}) for index in (0, 1, 2)}
    shown = [kept, {index: frozenset({2, 3}) for index in (3, 4, 5)}]

    def order(num_images):
        pool = ReplayPool(STAGES[1], kept, shown, range(6), num_images, counts_of)
        return list(class_proportional(pool))

    for num_images in (1, 2, 3, 4, 5):  # Half of the classes are past.
        chosen = order(num_images)
        assert sorted(chosen) == list(range(6))
        old = num_images // 2
        assert set(chosen[:old]) <= kept.keys() and chosen[old : old + 3][0] not in kept
    assert set(order(5)[2:5]) == {3, 4, 5} and order(100)[:3] != order(100)[3:]


def test_an_image_in_both_sets_is_a_kept_one_with_the_labels_of_both():
    kept = {5: frozenset({0})}
    shown = [kept, {5: frozenset({3}), 3: frozenset({2})}]
    pool = ReplayPool(STAGES[1], kept, shown, range(6), 2, counts_of)
    assert list(class_proportional(pool)) == [5, 3]
    assert pool.candidates[5] == {0, 3}


def test_of_equal_images_that_of_the_lowest_rank_is_first():
    shown = [dict.fromkeys(range(4), frozenset({0}))]
    ranks = [2, 0, 3, 1]
    pool = ReplayPool(STAGES[0], {}, shown, ranks, 4, lambda index: np.eye(10, dtype=int)[0])
    assert list(class_proportional(pool)) == [1, 3, 0, 2]
