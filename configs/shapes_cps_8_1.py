"""Continual panoptic segmentation of the built-in shapes: 8 base classes, then 4 stages of one.

    python -m simcis_jax.main --config=shapes_cps_8_1 --workdir=runs/shapes_cps_8_1

Unlike shapes_cps_published_8_1, it has settings of our own against forgetting.
"""

from simcis_jax.configs import shapes_cps_8_2


def get_config():
    config = shapes_cps_8_2.get_config()
    config.protocol.increment = 1
    return config
