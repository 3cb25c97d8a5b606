r"""BalConpas with replay: the built-in shapes, 8 base classes, then 2 stages of 2.

    python -m simcis_jax.main --config=shapes_cps_balconpas_8_2 \
        --workdir=runs/shapes_cps_balconpas_8_2

Only the method and the 60 images that later stages replay differ from shapes_cps_plain_8_2.
"""

from simcis_jax.configs import plain, shapes_cps_plain_8_2


def get_config():
    return plain.small_balconpas(shapes_cps_plain_8_2.get_config(), num_images=4000)
