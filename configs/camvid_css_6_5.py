"""Continual semantic segmentation of CamVid: 6 base classes, then 5 more; sized for 2 CPU cores.

    python -m simcis_jax.main --config=configs/camvid_css_6_5.py \
        --config.data.root=DIR --workdir=runs/camvid_css_6_5

DIR holds images/SPLIT and semantic_SPLIT of the splits train and val. The network and its training
are those of camvid_cps_6_5, targets and metrics those of semantic segmentation.
"""

from configs import camvid_cps_6_5


def get_config():
    config = camvid_cps_6_5.get_config()
    config.data.name = 'semantic_folder'
    config.loss.classification = 2.0
    config.method.update(pseudo_label_score=0.0, merge_classes=True)
    config.evaluation.tasks = ('semantic',)
    return config
