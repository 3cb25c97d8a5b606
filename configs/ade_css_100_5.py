"""Continual semantic segmentation of ADE20K, 100 base classes, then 10 stages of 5.

    python -m simcis_jax.main --config=ade_css_100_5 --workdir=runs/ade_css_100_5

The paper's mIoU (table 3, `miou_reference` here): base 46.7, novel 22.8, all 38.7, average over
stages 47.4.
"""

from simcis_jax.configs import ade


def get_config():
    config = ade.semantic()
    config.protocol.update(base=100, increment=5)
    for name in ('simcis', 'futcr'):
        config.method[name].update(num_virtual_queries=3, decoder_kl_temperature=2.0)
    return config
