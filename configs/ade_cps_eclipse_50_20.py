"""ECLIPSE: panoptic segmentation of ADE20K, 50 base classes, then 5 stages of 20.

    python -m simcis_jax.main --config=ade_cps_eclipse_50_20 --workdir=runs/ade_cps_eclipse_50_20

20 prompts a stage, 80,000 steps for stage 1 and 32,000 for each later stage, at a learning
rate of 5e-4; deltas 0.4, then 0.5.
The paper's PQ (table 2 of SimCIS): base 46.4, novel 19.6, all 28.6.
"""

from simcis_jax.configs import eclipse


def get_config():
    return eclipse.panoptic(50, 20, later_steps=32_000, prompts=20, deltas=(0.4, 0.5))
