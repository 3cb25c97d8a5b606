"""Continual panoptic segmentation of COCO: 83 base classes, then 10 stages of 5.

    python -m simcis_jax.main --config=coco_cps_83_5 --workdir=runs/coco_cps_83_5

The paper's PQ (table 9): base 39.5, novel 23.7, all 33.6. The hyperparameters of
this split are not published; those of ADE20K 100-5 are used.
"""

from simcis_jax.configs import ade_cps_100_5


def get_config():
    config = ade_cps_100_5.get_config()
    config.data.root = 'data/coco_panoptic'
    config.protocol.update(base=83, increment=5)
    return config
