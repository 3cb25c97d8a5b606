"""ECLIPSE: panoptic segmentation of COCO, 83 base classes, then 10 stages of 5.

    python -m simcis_jax.main --config=coco_cps_eclipse_83_5 --workdir=runs/coco_cps_eclipse_83_5

10 prompts a stage, 240,000 steps for stage 1 and 8,000 for each later stage, at a learning
rate of 5e-4; deltas 0.5, then 0.6.
No PQ at hand; that of the published code leaves out a class, because it takes "person" for void.
The published code trains on whole images, with a shorter side of 800; here, training crops
640 x 640. Its order of classes is --config.protocol.order=coco_c; here, the order is that of the
data set, as in the configs of the other methods.
"""

from simcis_jax.configs import eclipse


def get_config():
    return eclipse.coco(5, later_steps=8_000, prompts=10, deltas=(0.5, 0.6))
