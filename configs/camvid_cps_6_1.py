"""Continual panoptic segmentation of CamVid: 6 base classes, then 5 stages of one.

    python -m simcis_jax.main --config=camvid_cps_6_1 \
        --config.data.root=DIR --workdir=runs/camvid_cps_6_1

Unlike camvid_cps_published_6_1, it has settings of our own against forgetting.
"""

from simcis_jax.configs import camvid_cps_published_6_1, common


def get_config():
    return common.keep_half_believed(camvid_cps_published_6_1.get_config())
