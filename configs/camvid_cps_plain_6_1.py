r"""Methods on the original Mask2Former: CamVid, 6 base classes, then 5 stages of one.

    python -m simcis_jax.main --config=camvid_cps_plain_6_1 \
        --config.data.root=DIR --workdir=runs/camvid_cps_plain_6_1

--config.method.name chooses the method: plop, mib, comformer, balconpas, eclipse, pseudo_label or
finetune. Only the network, its losses and the evaluation differ from camvid_cps_published_6_1.
"""

from simcis_jax.configs import camvid_cps_published_6_1, plain


def get_config():
    return plain.small(camvid_cps_published_6_1.get_config())
