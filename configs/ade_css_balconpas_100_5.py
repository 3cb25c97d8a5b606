r"""BalConpas: ADE20K semantic, 100 base classes, then 10 stages of 5.

    python -m simcis_jax.main --config=ade_css_balconpas_100_5 \
        --workdir=runs/ade_css_balconpas_100_5

Later stages replay 300 images and train for 1,000 steps per class. Published mIoU: all 36.79;
without replay, by --config.protocol.replay_images=0, base 42.1, novel 17.2, all 33.8, average over
stages 41.3 (table 3 of SimCIS).
"""

from simcis_jax.configs import plain


def get_config():
    return plain.balconpas_semantic(100, 5)
