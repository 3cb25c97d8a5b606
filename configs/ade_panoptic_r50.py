"""The original Mask2Former on ADE20K panoptic, ResNet-50: 150 classes, 160,000 steps.

    python -m simcis_jax.main --config=ade_panoptic_r50 --workdir=runs/ade_panoptic_r50

Published: PQ 39.7, AP 26.5, mIoU 46.1.
"""

from simcis_jax.configs import plain


def get_config():
    config = plain.panoptic(150, 'data/ade20k_panoptic')
    config.optimizer.decay = 'polynomial'
    return config
