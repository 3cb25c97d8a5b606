"""The built-in shapes in 8 + 2 + 2 classes, with the published method unchanged.

    python -m simcis_jax.main --config=shapes_cps_published_8_2 \
        --workdir=runs/shapes_cps_published_8_2

shapes_cps_8_2 improves on it; the experiments compare what is published.
"""

from simcis_jax.configs import common


def get_config():
    config = common.small_model(common.get_config())
    config.data.name = 'shapes'
    config.data.size = 64
    config.data.scale_range = (0.8, 1.6)
    config.protocol.base = 8
    config.protocol.increment = 2
    for name in ('simcis', 'futcr'):
        config.method[name].num_virtual_queries = 4
    config.training.batch_size = 16
    config.training.base_steps = 1000
    config.training.steps_per_class = 125
    config.training.statistics_images = 512
    config.training.checkpoint_every = 250
    config.evaluation.short_side = 64
    config.evaluation.max_side = 64
    config.evaluation.batch_size = 25
    return config
