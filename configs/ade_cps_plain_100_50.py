"""Methods on the original Mask2Former: ADE20K panoptic, 100 base classes, then one stage of 50.

    python -m simcis_jax.main --config=ade_cps_plain_100_50 --workdir=runs/ade_cps_plain_100_50

--config.method.name chooses the method: plop, mib, comformer, pseudo_label or finetune. Published
PQ (table 1 of SimCIS): PLOP base 42.4, novel 23.7, all 36.2, MiB base 23.3, novel 14.9, all 20.5,
CoMFormer base 41.1, novel 27.7, all 36.7.
"""

from simcis_jax.configs import plain


def get_config():
    config = plain.continual_ade(100, 50)
    config.method.comformer.distillation_weight = 5.0
    return config
