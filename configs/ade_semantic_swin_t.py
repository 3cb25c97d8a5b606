"""The original Mask2Former on ADE20K semantic, Swin-T: 150 classes, 160,000 steps at 512 pixels.

    python -m simcis_jax.main --config=ade_semantic_swin_t --workdir=runs/ade_semantic_swin_t

Published: mIoU 47.7.
"""

from simcis_jax.configs import plain


def get_config():
    config = plain.swin_tiny(plain.panoptic(150, 'data/ade20k_semantic'))
    config.data.size = 512
    config.optimizer.decay = 'polynomial'
    config.evaluation.update(
        tasks=('semantic',), short_side=512, max_side=2048, semantic_resize='scores'
    )
    return config
