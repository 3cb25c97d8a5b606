"""ECLIPSE: panoptic segmentation of ADE20K, 50 base classes, then 2 stages of 50.

    python -m simcis_jax.main --config=ade_cps_eclipse_50_50 --workdir=runs/ade_cps_eclipse_50_50

50 prompts a stage, 80,000 steps for stage 1 and 120,000 for each later stage, at a learning
rate of 5e-4; deltas 0.5, then -0.4.
The paper's PQ (table 2 of SimCIS): base 46.0, novel 20.7, all 29.2.
"""

from simcis_jax.configs import eclipse


def get_config():
    return eclipse.panoptic(50, 50, later_steps=120_000, prompts=50, deltas=(0.5, -0.4))
