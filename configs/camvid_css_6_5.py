"""Continual semantic segmentation of CamVid: 6 base classes, then 5 more; sized for 2 CPU cores.

    python -m simcis_jax.main --config=camvid_css_6_5 \
        --config.data.root=DIR --workdir=runs/camvid_css_6_5

DIR contains images/SPLIT and semantic_SPLIT for the splits train and val. Network and training are
those of camvid_cps_published_6_5, targets and metrics those of semantic segmentation.
"""

from simcis_jax.configs import camvid_cps_published_6_5


def get_config():
    config = camvid_cps_published_6_5.get_config()
    config.data.name = 'semantic_folder'
    config.loss.classification = 2.0
    for name in ('pseudo_label', 'simcis', 'futcr'):
        config.method[name].update(pseudo_label_score=0.0, merge_classes=True)
    # The published thresholds, 0.4 and 0.8, suit models with higher scores after longer training.
    config.evaluation.update(tasks=('semantic',), semantic_threshold=0.2, overlap_threshold=0.5)
    return config
