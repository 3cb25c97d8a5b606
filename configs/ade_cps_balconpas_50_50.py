r"""BalConpas: ADE20K panoptic, 50 base classes, then 2 stages of 50.

    python -m simcis_jax.main --config=ade_cps_balconpas_50_50 \
        --workdir=runs/ade_cps_balconpas_50_50

Later stages replay 300 images and train for 1,000 steps per class. Published PQ: all 35.81; base
51.2, novel 26.5, all 34.7 (table 2 of SimCIS, which does not say whether with replay).
"""

from simcis_jax.configs import plain


def get_config():
    return plain.balconpas_panoptic(50, 50)
