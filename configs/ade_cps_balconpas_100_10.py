r"""BalConpas: ADE20K panoptic, 100 base classes, then 5 stages of 10.

    python -m simcis_jax.main --config=ade_cps_balconpas_100_10 \
        --workdir=runs/ade_cps_balconpas_100_10

Later stages replay 300 images and train for 1,000 steps per class. Published PQ: all 36.49; without
replay, by --config.protocol.replay_images=0, base 40.7, novel 22.8, all 34.7, average over stages
38.8 (table 1 of SimCIS).
"""

from simcis_jax.configs import plain


def get_config():
    return plain.balconpas_panoptic(100, 10)
