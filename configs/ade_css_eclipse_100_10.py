"""ECLIPSE: semantic segmentation of ADE20K, 100 base classes, then 5 stages of 10.

    python -m simcis_jax.main --config=ade_css_eclipse_100_10 --workdir=runs/ade_css_eclipse_100_10

5 prompts a stage, 160,000 steps for stage 1 and 24,000 for each later stage, at a learning
rate of 1e-3; deltas 0.1, then 0.7.
The paper's mIoU (table 3 of SimCIS): base 43.4, novel 17.4, all 34.6.
"""

from simcis_jax.configs import eclipse


def get_config():
    return eclipse.semantic(10, later_steps=24_000, prompts=5, deltas=(0.1, 0.7))
