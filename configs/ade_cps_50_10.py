"""Continual panoptic segmentation of ADE20K, 50 base classes, then 10 stages of 10.

    python -m simcis_jax.main --config=ade_cps_50_10 --workdir=runs/ade_cps_50_10

The paper's PQ (table 2): base 48.8, novel 30.0, all 36.3.
The hyperparameters of this split are not published; those of 100-10 are used.
"""

from simcis_jax.configs import ade


def get_config():
    config = ade.panoptic()
    config.protocol.update(base=50, increment=10)
    return config
