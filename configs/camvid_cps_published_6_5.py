r"""CamVid in 6 + 5 classes, with the published method unchanged.

    python -m simcis_jax.main --config=camvid_cps_published_6_5 \
        --config.data.root=DIR --workdir=runs/camvid_cps_published_6_5

camvid_cps_6_5 improves on it; the experiments compare what is published.
"""

from simcis_jax.configs import common


def get_config():
    config = common.small_model(common.get_config())
    config.data.update(name='coco_panoptic', size=128, max_segments=32, scale_range=(1.0, 2.0))
    config.model.num_queries = 40
    config.loss.num_points = 256
    config.protocol.update(base=6, increment=5)
    for name in ('simcis', 'futcr'):
        config.method[name].num_virtual_queries = 4
    config.training.update(
        batch_size=8,
        base_steps=1000,
        steps_per_class=100,
        statistics_images=0,
        checkpoint_every=500,
    )
    config.evaluation.update(short_side=128, max_side=256, batch_size=8)
    return config
