"""Continual semantic segmentation of ADE20K, 100 base classes, then 50.

    python -m simcis_jax.main --config=ade_css_100_50 --workdir=runs/ade_css_100_50

The paper's mIoU (table 3, `miou_reference` here): base 54.9, novel 36.0, all 48.6, average over
stages 52.0.
"""

from simcis_jax.configs import ade


def get_config():
    config = ade.semantic()
    config.protocol.update(base=100, increment=50)
    for name in ('simcis', 'futcr'):
        config.method[name].update(decoder_kl_weight=0.0, sampling_alpha=0.25)
    return config
