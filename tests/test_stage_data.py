"""What a stage is made of."""

import pytest
from tiny import tiny_config

from simcis_jax import settings
from simcis_jax.continual.stages import make_stages
from simcis_jax.data.shapes import Shapes
from simcis_jax.stage_data import check_images, survey_batches


@pytest.fixture(scope='module')
def images():
    return Shapes('train', size=32, num_images=30)


@pytest.fixture(scope='module')
def stages(images):
    return make_stages(len(images.categories), base=8, increment=2)


def tiny_settings(**changes):
    return settings.from_config(tiny_config(**changes).to_dict())


def test_a_stage_without_an_image_is_an_error_before_anything_is_trained(images, stages):
    check_images(images, stages, tiny_settings())
    few = Shapes('train', size=32, num_images=1)
    with pytest.raises(ValueError, match=r'no image for stage \d, classes \[.*\], in the disjoint'):
        check_images(few, stages, tiny_settings(**{'protocol.setting': 'disjoint'}))


@pytest.mark.parametrize('limit', [1, 4, 7, 100])
def test_a_survey_sees_at_most_its_limit_from_all_over_the_data_set(images, stages, limit):
    config = tiny_settings(**{'training.survey_images': limit})
    number, batches = survey_batches(images, stages[0], config)
    assert 0 < number <= limit
    assert sum(int(real.sum()) for _, real in batches) == number
    if limit == 4:  # 30 images, all of them with a base class or nearly so: one in eight.
        assert number >= 3


def test_an_unknown_setting_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="protocol.setting='overlap' is unknown.*'disjoint'"):
        tiny_settings(**{'protocol.setting': 'overlap'})
