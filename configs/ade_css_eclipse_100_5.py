"""ECLIPSE: semantic segmentation of ADE20K, 100 base classes, then 10 stages of 5.

    python -m simcis_jax.main --config=ade_css_eclipse_100_5 --workdir=runs/ade_css_eclipse_100_5

5 prompts a stage, 160,000 steps for stage 1 and 12,000 for each later stage, at a learning
rate of 1e-3; deltas 0.1, then 0.8.
The paper's mIoU (table 3 of SimCIS): base 43.3, novel 16.3, all 34.2.
"""

from simcis_jax.configs import eclipse


def get_config():
    return eclipse.semantic(5, later_steps=12_000, prompts=5, deltas=(0.1, 0.8))
