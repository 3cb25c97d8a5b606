"""Continual panoptic segmentation of ADE20K, 50 base classes, then 5 stages of 20.

    python -m simcis_jax.main --config=ade_cps_50_20 --workdir=runs/ade_cps_50_20

The paper's PQ (table 2): base 51.6, novel 31.9, all 38.5.
The hyperparameters of this split are not published; those of 100-10 are used.
"""

from simcis_jax.configs import ade


def get_config():
    config = ade.panoptic()
    config.protocol.update(base=50, increment=20)
    return config
