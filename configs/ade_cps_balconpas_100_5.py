r"""BalConpas: ADE20K panoptic, 100 base classes, then 10 stages of 5.

    python -m simcis_jax.main --config=ade_cps_balconpas_100_5 \
        --workdir=runs/ade_cps_balconpas_100_5

Later stages replay 300 images and train for 1,000 steps per class. Published PQ: all 32.82; without
replay, by --config.protocol.replay_images=0, base 36.1, novel 20.3, all 30.8, average over stages
35.8 (table 1 of SimCIS).
"""

from simcis_jax.configs import plain


def get_config():
    return plain.balconpas_panoptic(100, 5)
