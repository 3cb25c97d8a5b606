"""Continual panoptic segmentation of ADE20K, 50 base classes, then 2 stages of 50.

    python -m simcis_jax.main --config=ade_cps_50_50 --workdir=runs/ade_cps_50_50

The paper's PQ (table 2): base 52.1, novel 30.7, all 37.9.
The hyperparameters of this split are not published; those of 100-10 are used.
"""

from simcis_jax.configs import ade


def get_config():
    config = ade.panoptic()
    config.protocol.update(base=50, increment=50)
    return config
