"""Methods on the original Mask2Former: the built-in shapes, 8 base classes, then 2 stages of 2.

    python -m simcis_jax.main --config=shapes_cps_plain_8_2 --workdir=runs/shapes_cps_plain_8_2

--config.method.name chooses the method: plop, mib, comformer, balconpas, eclipse, pseudo_label or
finetune. Only the network, its losses and the evaluation differ from shapes_cps_published_8_2.
"""

from simcis_jax.configs import plain, shapes_cps_published_8_2


def get_config():
    return plain.small(shapes_cps_published_8_2.get_config())
