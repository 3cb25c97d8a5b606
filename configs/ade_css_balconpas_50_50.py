r"""BalConpas: ADE20K semantic, 50 base classes, then 2 stages of 50.

    python -m simcis_jax.main --config=ade_css_balconpas_50_50 \
        --workdir=runs/ade_css_balconpas_50_50

Later stages replay 300 images and train for 1,000 steps per class. Published mIoU: all 41.33.
"""

from simcis_jax.configs import plain


def get_config():
    return plain.balconpas_semantic(50, 50)
