r"""BalConpas: ADE20K semantic, 100 base classes, then 5 stages of 10.

    python -m simcis_jax.main --config=ade_css_balconpas_100_10 \
        --workdir=runs/ade_css_balconpas_100_10

Later stages replay 300 images and train for 1,000 steps per class. Published mIoU: all 40.43;
without replay, by --config.protocol.replay_images=0, base 47.3, novel 24.2, all 38.6, average over
stages 43.6 (table 3 of SimCIS, where these do not fit each other).
"""

from simcis_jax.configs import plain


def get_config():
    return plain.balconpas_semantic(100, 10)
