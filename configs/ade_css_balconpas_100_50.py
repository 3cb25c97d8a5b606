r"""BalConpas: ADE20K semantic, 100 base classes, then one stage of 50.

    python -m simcis_jax.main --config=ade_css_balconpas_100_50 \
        --workdir=runs/ade_css_balconpas_100_50

Later stages replay 300 images and train for 1,000 steps per class. Published mIoU: all 44.01;
without replay, by --config.protocol.replay_images=0, base 49.9, novel 30.1, all 43.3, average over
stages 47.4 (table 3 of SimCIS).
"""

from simcis_jax.configs import plain


def get_config():
    return plain.balconpas_semantic(100, 50)
