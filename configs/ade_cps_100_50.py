"""Continual panoptic segmentation of ADE20K, 100 base classes, then 50.

    python -m simcis_jax.main --config=ade_cps_100_50 --workdir=runs/ade_cps_100_50

The paper's PQ (table 1): base 44.7, novel 30.8, all 40.0, average over stages 42.7.
"""

from simcis_jax.configs import ade


def get_config():
    config = ade.panoptic()
    config.protocol.update(base=100, increment=50)
    for name in ('simcis', 'futcr'):
        config.method[name].update(num_virtual_queries=0, sampling_alpha=0.25)
    config.optimizer.milestones = (0.8, 0.9)
    config.evaluation.update(object_mask_threshold=0.2, every=10_000)
    return config
