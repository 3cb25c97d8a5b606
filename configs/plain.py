"""Base of the configs of the original Mask2Former: joint training on all classes.

A pretrained model, a folder of transformers or a file of detectron2, is the start with
--config.training.init_from=MODEL; with --mode=evaluate it is scored instead.
"""

import math

from ml_collections import ConfigDict

from simcis_jax.configs import common


def original_network(config: ConfigDict) -> ConfigDict:
    """Changes network and losses to those of the original Mask2Former."""
    config.model.update(
        head='softmax', boxes=False, queries='learned', attention_order='cross_first'
    )
    config.loss.update(classification=2.0, mask=5.0, dice=5.0, no_object=0.1)
    return config


def panoptic(num_classes: int, root: str) -> ConfigDict:
    """Joint panoptic training with ResNet-50 on this number of classes."""
    config = original_network(common.get_config())
    config.data.update(name='prepared', root=root)
    config.protocol.update(base=num_classes, increment=num_classes)
    config.model.dtype = 'bfloat16'
    config.method.update(name='finetune')
    config.training.update(batch_size=16, init_backbone='weights/R-50.pkl')
    config.evaluation.update(
        tasks=('panoptic', 'semantic', 'instance'),
        object_mask_threshold=0.8,
        semantic_rule='soft_sum',
    )
    return config


def swin_tiny(config: ConfigDict) -> ConfigDict:
    """Changes the backbone to Swin-T."""
    config.model.update(backbone='swin_t', stochastic_depth=0.3)
    config.training.init_backbone = 'weights/swin_tiny_patch4_window7_224.pth'
    return config


def continual_ade(base: int, increment: int) -> ConfigDict:
    """Continual panoptic segmentation of ADE20K as in the first comparison of methods on masks.

    Later stages train for 400 steps per class. The code behind the published numbers of MiB draws
    new rows of the class head at random.
    """
    config = panoptic(150, 'data/ade20k_panoptic')
    config.protocol.update(base=base, increment=increment)
    config.optimizer.decay = 'polynomial'
    config.training.update(batch_size=8, steps_per_class=400)
    config.method.name = 'plop'
    config.method.mib.balanced_initialization = False
    config.evaluation.update(object_mask_threshold=0.0, overlap_threshold=0.0)
    return config


def balconpas_panoptic(base: int, increment: int) -> ConfigDict:
    """Continual panoptic segmentation of ADE20K as published for BalConpas.

    Later stages train for 1,000 steps per class and replay 300 images.
    """
    config = panoptic(150, 'data/ade20k_panoptic')
    config.protocol.update(base=base, increment=increment, replay_images=300)
    config.optimizer.decay = 'polynomial'
    config.training.batch_size = 8
    config.method.name = 'balconpas'
    return config


def balconpas_semantic(base: int, increment: int) -> ConfigDict:
    """Continual semantic segmentation of ADE20K as published for BalConpas, with ResNet-101.

    The published runs train the batch norms of the backbone, which are frozen here.
    """
    config = balconpas_panoptic(base, increment)
    config.data.update(root='data/ade20k_semantic', size=512)
    config.model.backbone = 'resnet101'
    config.training.init_backbone = 'weights/R-101.pkl'
    config.evaluation.update(
        tasks=('semantic',), short_side=512, max_side=2048, semantic_resize='scores'
    )
    return config


def small(config: ConfigDict) -> ConfigDict:
    """Changes a config of the small network to PLOP on the original Mask2Former.

    What depends on the data or on the size of the network stays; the rest is as published. Methods
    that add queries add as many per class as the first stage has.
    """
    original_network(config)
    config.model.class_prior = None
    config.method.name = 'plop'
    per_class = math.ceil(config.model.num_queries / config.protocol.base)
    config.method.eclipse.prompts_per_stage = per_class * config.protocol.increment
    config.evaluation.update(object_mask_threshold=0.0, overlap_threshold=0.0)
    return config


def small_balconpas(config: ConfigDict, num_images: int) -> ConfigDict:
    """Changes a config made by `small` to BalConpas with replay.

    It replays as large a share of the `num_images` of the data set as published: 300 of 20,210.
    """
    config.method.name = 'balconpas'
    config.protocol.replay_images = round(0.015 * num_images)
    return config
