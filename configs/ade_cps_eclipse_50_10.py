"""ECLIPSE: panoptic segmentation of ADE20K, 50 base classes, then 10 stages of 10.

    python -m simcis_jax.main --config=ade_cps_eclipse_50_10 --workdir=runs/ade_cps_eclipse_50_10

10 prompts a stage, 80,000 steps for stage 1 and 24,000 for each later stage, at a learning
rate of 5e-4; deltas 0.4, then 0.5.
The paper's PQ (table 2 of SimCIS): base 45.9, novel 17.3, all 26.8.
"""

from simcis_jax.configs import eclipse


def get_config():
    return eclipse.panoptic(50, 10, later_steps=24_000, prompts=10, deltas=(0.4, 0.5))
