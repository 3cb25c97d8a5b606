"""Continual panoptic segmentation of CamVid: 6 base classes, then 5 more; sized for 2 CPU cores.

    python -m simcis_jax.main --config=camvid_cps_6_5 \
        --config.data.root=DIR --workdir=runs/camvid_cps_6_5

DIR contains images/SPLIT, panoptic_SPLIT and panoptic_SPLIT.json for the splits train and val.
Unlike camvid_cps_published_6_5, it has settings of our own against forgetting.
"""

from simcis_jax.configs import camvid_cps_published_6_5, common


def get_config():
    return common.keep_half_believed(camvid_cps_published_6_5.get_config())
