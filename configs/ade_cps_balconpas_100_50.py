r"""BalConpas: ADE20K panoptic, 100 base classes, then one stage of 50.

    python -m simcis_jax.main --config=ade_cps_balconpas_100_50 \
        --workdir=runs/ade_cps_balconpas_100_50

Later stages replay 300 images and train for 1,000 steps per class. Published PQ: all 37.55; without
replay, by --config.protocol.replay_images=0, base 42.8, novel 25.7, all 37.1, average over stages
40.0 (table 1 of SimCIS).
"""

from simcis_jax.configs import plain


def get_config():
    return plain.balconpas_panoptic(100, 50)
