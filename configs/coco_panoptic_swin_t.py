"""The original Mask2Former on COCO panoptic, Swin-T: 133 classes, 50 epochs.

    python -m simcis_jax.main --config=coco_panoptic_swin_t --workdir=runs/coco_panoptic_swin_t

Published: PQ 53.2, AP 43.3, mIoU 63.2.
"""

from simcis_jax.configs import coco_panoptic_r50, plain


def get_config():
    return plain.swin_tiny(coco_panoptic_r50.get_config())
