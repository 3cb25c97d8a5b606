"""Base configs of the published ADE20K settings: 150 classes, ImageNet weights, batches of 8.

The data set is read from data/, where `python -m simcis_jax.prepare ade20k` writes it, and the
backbone weights of torchvision or detectron2 from weights/. --config.data.root and
--config.training.init_backbone change these paths.

Stage 1 trains for 160,000 steps, every later stage for 1,000 steps per class. The published runs
used 4 GPUs; the batch of 8 is global, for any number of devices. If the share of a device does not
fit into its memory, --config.training.microbatch_size=1 processes one image at a time, with the
same results (except with FuTCR).
"""

from ml_collections import ConfigDict

from simcis_jax.configs import common


def panoptic() -> ConfigDict:
    """CPS with ResNet-50 at 640 x 640, with the published values of 100-10."""
    config = common.get_config()
    config.data.update(name='prepared', root='data/ade20k_panoptic')
    config.model.dtype = 'bfloat16'  # The published runs use mixed precision too.
    config.training.init_backbone = 'weights/R-50.pkl'
    config.evaluation.update(tasks=('panoptic', 'semantic', 'instance'), every=2501)
    return config


def semantic() -> ConfigDict:
    """CSS with ResNet-101 at 512 x 512, with the published values of 100-10."""
    config = panoptic()
    config.data.update(root='data/ade20k_semantic', size=512)
    config.model.backbone = 'resnet101'
    config.training.init_backbone = 'weights/R-101.pkl'
    config.loss.classification = 2.0
    for name in ('pseudo_label', 'simcis', 'futcr'):
        config.method[name].update(pseudo_label_score=0.0, merge_classes=True)
    for name in ('simcis', 'futcr'):
        config.method[name].update(decoder_kl_weight=2.0, decoder_kl_temperature=4.0)
    config.evaluation.update(tasks=('semantic',), short_side=512, max_side=2048, every=5000)
    return config
