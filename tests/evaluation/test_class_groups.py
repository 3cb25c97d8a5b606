import pytest
from scored_stages import STAGES

from simcis_jax.evaluation.class_groups import class_groups


def test_groups_of_the_first_stage():
    assert class_groups(STAGES, 0) == {
        'base': (4, 0),
        'novel': (),
        'past': (),
        'current': (4, 0),
        'all': (4, 0),
    }


def test_groups_of_the_last_stage():
    assert class_groups(STAGES, 2) == {
        'base': (4, 0),
        'novel': (2, 1, 3),
        'past': (4, 0, 2),
        'current': (1, 3),
        'all': (4, 0, 2, 1, 3),
    }


@pytest.mark.parametrize('stage', [-1, 3])
def test_a_stage_that_does_not_exist_is_an_error(stage):
    with pytest.raises(ValueError, match=f'Stage {stage} does not exist'):
        class_groups(STAGES, stage)
