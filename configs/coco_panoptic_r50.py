"""The original Mask2Former on COCO panoptic, ResNet-50: 133 classes, 50 epochs.

    python -m simcis_jax.main --config=coco_panoptic_r50 --workdir=runs/coco_panoptic_r50

Published: PQ 51.9, AP 41.7, mIoU 61.7. The original scales the longer side to 0.1 to 2 times the
crop of 1024 pixels, this config the shorter side.
"""

from simcis_jax.configs import plain


def get_config():
    config = plain.panoptic(133, 'data/coco_panoptic')
    config.data.update(size=1024, scale_range=(0.1, 2.0), scale_steps=191, color=False)
    config.optimizer.milestones = 327_778 / 368_750, 355_092 / 368_750
    config.training.base_steps = 368_750
    config.evaluation.update(short_side=800, max_side=1333)
    return config
