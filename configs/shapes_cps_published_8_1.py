"""The built-in shapes in 8 + 1 + 1 + 1 + 1 classes, with the published method unchanged.

    python -m simcis_jax.main --config=shapes_cps_published_8_1 \
        --workdir=runs/shapes_cps_published_8_1

Only the protocol differs from shapes_cps_published_8_2, so runs of both can share the first stage.
With twice as many stages there is more forgetting, so the experiments compare methods on this
config.
"""

from simcis_jax.configs import shapes_cps_published_8_2


def get_config():
    config = shapes_cps_published_8_2.get_config()
    config.protocol.increment = 1
    return config
