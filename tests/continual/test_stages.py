import re

import numpy as np
import pytest

from simcis_jax.continual.stages import Stage, class_order, make_stages


@pytest.mark.parametrize(
    'base, increment, sizes',
    [
        (100, 5, [100] + [5] * 10),
        (100, 10, [100] + [10] * 5),
        (100, 50, [100, 50]),
        (50, 50, [50] * 3),
        (150, 10, [150]),
        (150, 0, [150]),  # Joint training needs no increment.
        (1, 149, [1, 149]),
    ],
)
def test_stages_have_the_sizes_of_the_protocol(base, increment, sizes):
    stages = make_stages(150, base=base, increment=increment)
    assert [len(stage.current) for stage in stages] == sizes
    assert [stage.number for stage in stages] == list(range(1, len(sizes) + 1))
    assert [stage.index for stage in stages] == list(range(len(sizes)))


@pytest.mark.parametrize(
    'added, sizes', [((1,), [4, 2, 2, 1]), ((3, 2), [4, 3, 2]), ((5,), [4, 5])]
)
def test_added_stages_come_after_the_planned_ones(added, sizes):
    increment = 2 if sizes[1] == 2 else 3
    stages = make_stages(9, base=4, increment=increment, added=added)
    assert [len(stage.current) for stage in stages] == sizes
    assert stages[-1].seen == tuple(range(9))


@pytest.mark.parametrize('added', [(0,), (6,), (3, -1)])
def test_added_classes_must_exist(added):
    with pytest.raises(ValueError, match=r'protocol.added=\('):
        make_stages(9, base=4, increment=1, added=added)


def test_every_class_is_learned_exactly_once():
    stages = make_stages(150, base=100, increment=10)
    learned = [label for stage in stages for label in stage.current]
    assert sorted(learned) == list(range(150))


def test_past_classes_are_those_of_all_stages_before():
    stages = make_stages(20, base=8, increment=4, order='descending')
    assert stages[0].past == ()
    for before, stage in zip(stages, stages[1:], strict=False):
        assert stage.past == before.seen and not set(stage.past) & set(stage.current)
    assert len(stages[-1].seen) == 20


def test_origin_is_ascending_and_descending_its_reverse():
    assert make_stages(6, base=4, increment=1)[0].current == (0, 1, 2, 3)
    stages = make_stages(6, base=4, increment=1, order='descending')
    assert [stage.current for stage in stages] == [(5, 4, 3, 2), (1,), (0,)]


def test_a_sequence_of_labels_is_used_as_the_order():
    stages = make_stages(4, base=2, increment=1, order=[2, 0, 3, 1])
    assert [stage.current for stage in stages] == [(2, 0), (3,), (1,)]
    assert class_order(np.array([2, 0, 3, 1]), 4) == (2, 0, 3, 1)


def test_masks_mark_past_and_current_labels():
    past, current = Stage(1, past=(4, 0), current=(2,)).masks(5)
    np.testing.assert_array_equal(past, [True, False, False, False, True])
    np.testing.assert_array_equal(current, [False, False, True, False, False])
    past, _ = Stage(0, past=(), current=(1,)).masks(3)
    assert past.dtype == bool and not past.any()


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(base=0, increment=1), 'protocol.base=0 must be between 1 and the 10 classes'),
        (dict(base=11, increment=1), 'protocol.base=11'),
        (dict(base=6, increment=3), 'protocol.increment must be one of [1, 2, 4]'),
        (dict(base=6, increment=0), 'protocol.increment must be one of [1, 2, 4]'),
        (dict(base=6, increment=-2), 'protocol.increment must be one of [1, 2, 4]'),
        (dict(base=6, increment=5), 'protocol 6-5 does not fit 10 classes'),
        (dict(base=6, increment=2, order='random'), "protocol.order='random' is unknown"),
        (dict(base=6, increment=2, order=range(9)), 'protocol.order must be a permutation'),
        (dict(base=6, increment=2, order=[0] * 10), 'protocol.order must be a permutation'),
        (dict(base=6, increment=2, order=range(1, 11)), '[0, 10]'),
        (dict(base=6, increment=2, order=[*range(10), 3]), 'has 11 entries'),
        (dict(base=6, increment=2, order=[*range(9), 9.5]), '[9, 9.5]'),
        (dict(base=6, increment=2, order=[*range(9), 'nine']), "[9, 'nine']"),
    ],
)
def test_an_impossible_protocol_is_an_error_that_names_the_field(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        make_stages(10, **arguments)
    assert '\n' not in str(error.value)
