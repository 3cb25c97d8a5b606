"""Base of the published settings of ECLIPSE.

Stage 1 trains the original Mask2Former, with a class weight of 2; later stages train prompts alone,
with a class weight of 10. Deltas are those of the published evaluation.
"""

from ml_collections import ConfigDict

from simcis_jax.configs import plain


def panoptic(
    base: int, increment: int, *, later_steps: int, prompts: int, deltas: tuple[float, ...]
) -> ConfigDict:
    """CPS of ADE20K with ResNet-50 at 640 x 640.

    Args:
        base: classes of stage 1; there are as many queries.
        increment: classes of every later stage.
        later_steps: steps of every later stage.
        prompts: of every later stage.
        deltas: of the logit manipulation; see `method.eclipse.deltas`.
    """
    config = plain.continual_ade(base, increment)
    config.method.name = 'eclipse'
    config.method.eclipse.update(prompts_per_stage=prompts, deltas=deltas)
    config.model.num_queries = config.data.max_segments = base
    config.optimizer.later_learning_rate = 5e-4
    config.training.update(base_steps=1_600 * base, steps_per_class=later_steps // increment)
    return config


def semantic(increment: int, **settings) -> ConfigDict:
    """CSS of ADE20K with ResNet-101 at 512 x 512 and 100 base classes; see `panoptic`."""
    config = panoptic(100, increment, **settings)
    config.data.update(root='data/ade20k_semantic', size=512)
    config.model.backbone = 'resnet101'
    config.optimizer.later_learning_rate = 1e-3
    config.training.update(batch_size=16, init_backbone='weights/R-101.pkl')
    config.evaluation.update(
        tasks=('semantic',),
        short_side=512,
        max_side=2048,
        semantic_rule='segments',
        semantic_threshold=0.0,
    )
    return config


def coco(increment: int, **settings) -> ConfigDict:
    """CPS of COCO with 83 base classes, at a constant learning rate; see `panoptic`.

    Colours are not jittered, and images are evaluated with a shorter side of 800, as published.
    """
    config = panoptic(83, increment, **settings)
    config.data.update(root='data/coco_panoptic', color=False)
    config.model.num_queries = config.data.max_segments = 100
    config.optimizer.update(decay='steps', milestones=())
    config.training.update(batch_size=16, base_steps=240_000)
    config.evaluation.update(short_side=800, max_side=1333)
    return config
