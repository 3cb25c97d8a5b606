"""ECLIPSE: semantic segmentation of ADE20K, 100 base classes, then one stage of 50.

    python -m simcis_jax.main --config=ade_css_eclipse_100_50 --workdir=runs/ade_css_eclipse_100_50

50 prompts a stage, 160,000 steps for stage 1 and 120,000 for each later stage, at a learning
rate of 1e-3; deltas 0.0, then -0.1.
The paper's mIoU (table 3 of SimCIS): base 45.0, novel 21.7, all 37.1. The published code
trains with deltas of -0.3 and -0.6.
"""

from simcis_jax.configs import eclipse


def get_config():
    return eclipse.semantic(50, later_steps=120_000, prompts=50, deltas=(0.0, -0.1))
