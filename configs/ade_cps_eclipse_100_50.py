"""ECLIPSE: panoptic segmentation of ADE20K, 100 base classes, then one stage of 50.

    python -m simcis_jax.main --config=ade_cps_eclipse_100_50 --workdir=runs/ade_cps_eclipse_100_50

50 prompts a stage, 160,000 steps for stage 1 and 80,000 for each later stage, at a learning
rate of 5e-4; deltas -0.4, then -0.6.
The paper's PQ: base 41.7, novel 23.5, all 35.6 (table 1 of SimCIS); the released weights were
scored again at 35.6, retraining by a user gave 33.6.
"""

from simcis_jax.configs import eclipse


def get_config():
    return eclipse.panoptic(100, 50, later_steps=80_000, prompts=50, deltas=(-0.4, -0.6))
