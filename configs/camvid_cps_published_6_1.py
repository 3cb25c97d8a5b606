r"""CamVid in 6 classes and 5 stages of one, with the published method unchanged.

    python -m simcis_jax.main --config=camvid_cps_published_6_1 \
        --config.data.root=DIR --workdir=runs/camvid_cps_published_6_1

Only the protocol differs from camvid_cps_published_6_5.
"""

from simcis_jax.configs import camvid_cps_published_6_5


def get_config():
    config = camvid_cps_published_6_5.get_config()
    config.protocol.increment = 1
    return config
