r"""BalConpas with replay: the built-in shapes, 8 base classes, then 4 stages of one.

    python -m simcis_jax.main --config=shapes_cps_balconpas_8_1 \
        --workdir=runs/shapes_cps_balconpas_8_1

Only the method and the 60 images that later stages replay differ from shapes_cps_plain_8_1.
"""

from simcis_jax.configs import plain, shapes_cps_plain_8_1


def get_config():
    return plain.small_balconpas(shapes_cps_plain_8_1.get_config(), num_images=4000)
