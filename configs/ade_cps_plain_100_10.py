"""Methods on the original Mask2Former: ADE20K panoptic, 100 base classes, then 5 stages of 10.

    python -m simcis_jax.main --config=ade_cps_plain_100_10 --workdir=runs/ade_cps_plain_100_10

--config.method.name chooses the method: plop, mib, comformer, pseudo_label or finetune. Published
PQ (table 1 of SimCIS): PLOP base 37.7, novel 23.3, all 32.9, MiB base 6.8, novel 0.2, all 4.6,
CoMFormer base 36.0, novel 17.1, all 29.7.
"""

from simcis_jax.configs import plain


def get_config():
    return plain.continual_ade(100, 10)
