"""Continual panoptic segmentation of the built-in shapes: 8 base classes, then 2 stages of 2.

    python -m simcis_jax.main --config=shapes_cps_8_2 --workdir=runs/shapes_cps_8_2

Unlike shapes_cps_published_8_2, it has settings of our own against forgetting.
"""

from simcis_jax.configs import common, shapes_cps_published_8_2


def get_config():
    config = common.keep_half_believed(shapes_cps_published_8_2.get_config())
    config.training.stop_gradient_from_stage = 2
    return config
