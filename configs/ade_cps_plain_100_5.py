"""Methods on the original Mask2Former: ADE20K panoptic, 100 base classes, then 10 stages of 5.

    python -m simcis_jax.main --config=ade_cps_plain_100_5 --workdir=runs/ade_cps_plain_100_5

--config.method.name chooses the method: plop, mib, comformer, pseudo_label or finetune. Published
PQ (table 1 of SimCIS): PLOP base 31.1, novel 11.9, all 24.7, MiB base 2.3, novel 0.0, all 1.5,
CoMFormer base 34.4, novel 15.9, all 28.2.
"""

from simcis_jax.configs import plain


def get_config():
    return plain.continual_ade(100, 5)
