"""ECLIPSE: panoptic segmentation of COCO, 83 base classes, then 5 stages of 10.

    python -m simcis_jax.main --config=coco_cps_eclipse_83_10 --workdir=runs/coco_cps_eclipse_83_10

10 prompts a stage, 240,000 steps for stage 1 and 32,000 for each later stage, at a learning
rate of 5e-4; deltas 0.5, then 0.6.
No PQ at hand; that of the published code leaves out a class, because it takes "person" for void.
The published code trains on whole images, with a shorter side of 800; here, training crops
640 x 640. Its order of classes is --config.protocol.order=coco_c; here, the order is that of the
data set, as in the configs of the other methods.
"""

from simcis_jax.configs import eclipse


def get_config():
    return eclipse.coco(10, later_steps=32_000, prompts=10, deltas=(0.5, 0.6))
