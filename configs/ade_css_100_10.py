"""Continual semantic segmentation of ADE20K, 100 base classes, then 5 stages of 10.

    python -m simcis_jax.main --config=ade_css_100_10 --workdir=runs/ade_css_100_10

The paper's mIoU (table 3, `miou_reference` here): base 49.7, novel 27.4, all 42.3, average over
stages 49.2.
"""

from simcis_jax.configs import ade


def get_config():
    config = ade.semantic()
    config.protocol.update(base=100, increment=10)
    return config
