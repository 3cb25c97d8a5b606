"""All config keys, with their defaults, descriptions and allowed values.

This is one long page on purpose: whoever looks for a key looks here. The fields of a network, of
the losses and of a method are config keys, too, and are declared with them:

    model         model/mask2former.py, the fields of `Mask2Former`
    loss          losses/weights.py, and `PointSampling` in losses/segmentation.py
    method.NAME   methods/NAME.py, and what that method inherits

`python -m simcis_jax.settings.reference` prints all of them as tables.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from simcis_jax.continual.protocol import SETTINGS
from simcis_jax.continual.stages import Stage, make_stages
from simcis_jax.losses.segmentation import PointSampling
from simcis_jax.losses.weights import LossWeights
from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.settings.declare import declare, declared
from simcis_jax.settings.groups import nested
from simcis_jax.settings.method_choice import METHOD_GROUPS
from simcis_jax.settings.relations import SCORES

DATA_SETS = ('coco_panoptic', 'prepared', 'semantic_folder', 'shapes')
TASKS = ('panoptic', 'semantic', 'instance')


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The data set and its augmentation."""

    name: str = declare(
        'coco_panoptic', "Data set; 'shapes' is built in and needs no files.", choices=DATA_SETS
    )
    root: str = declare(
        '',
        'Folder of the data set, or the address of a prepared one at gs:// or s3://.',
        path=True,
    )
    train_split: str = declare('train', 'Split to train on.')
    val_split: str = declare('val', 'Split to evaluate on.')
    hold_out: int = declare(
        0,
        'Evaluates every n-th training image, which is then not trained on, instead of '
        '`val_split`; for choosing settings. 0 = off.',
        at_least=0,
    )
    num_train_images: int = declare(
        0,
        "At most this many training images, spread over the split; 0 = all. Of 'shapes', as many "
        'are drawn, before `hold_out` takes its share; 0 = 4,000.',
        at_least=0,
    )
    num_val_images: int = declare(
        0,
        "The same for the images to evaluate on; 0 = 200 of 'shapes', or all that are held out.",
        at_least=0,
    )
    size: int = declare(640, 'Side of the square training crop in pixels.', at_least=1)
    max_segments: int = declare(100, 'Target segments per image; the largest are kept.', at_least=1)
    scale_range: tuple[float, float] = declare(
        (0.5, 2.0),
        'Range of the random shorter side, as multiples of `size`; (1, 1) does not resize.',
        above=0,
        rising=True,
    )
    scale_steps: int = declare(16, 'Number of evenly spaced scales in `scale_range`.', at_least=1)
    flip: bool = declare(True, 'Mirror images at random.')
    color: bool = declare(True, 'Jitter brightness, contrast, saturation and hue.')
    keep_empty: bool = declare(
        False, 'Keep segments that lie outside the crop as empty targets; published: True.'
    )
    num_workers: int = declare(
        0, 'Processes that load images; 0 = threads of this process.', at_least=0
    )
    num_threads: int = declare(4, 'Threads that load training images, in each process.', at_least=1)


@dataclasses.dataclass(frozen=True)
class ProtocolSettings:
    """The class-incremental protocol A-B: which classes arrive in which stage."""

    base: int = declare(
        100, 'A, the number of classes of stage 1; all classes = joint training.', at_least=1
    )
    increment: int = declare(10, 'B, the number of classes of every later stage.', at_least=1)
    added: tuple[int, ...] = declare(
        (), 'Numbers of classes of further stages, appended to those of A-B.', at_least=1
    )
    order: str | tuple[int, ...] = declare(
        'origin',
        "Class order: 'origin', 'descending', a published one ('ade20k_1' to 'ade20k_10', "
        "'ade20k_b' to 'ade20k_j', 'coco_c'), or the labels.",
        at_least=0,
    )
    setting: str = declare(
        'overlapped',
        "Images of a stage: 'overlapped' = all that show one of its classes; 'disjoint' = those of "
        "them without classes of later stages; 'sequential' = as 'disjoint', with past classes "
        'labelled as well.',
        choices=SETTINGS,
    )
    replay_images: int = declare(
        0,
        'Maximum number of replayed images of past stages; 0 = no limit. If `replay_megabytes` is '
        '0, too, nothing is replayed.',
        at_least=0,
    )
    replay_megabytes: float = declare(
        0.0,
        'Maximum size of the replayed images in 1e6 bytes; 0 = no limit. If `replay_images` is 0, '
        'too, nothing is replayed.',
        at_least=0,
    )
    mask_unseen: bool = declare(
        True,
        'Only classes seen so far select queries, compete in the softmax head and are predicted; '
        'published: False where queries are selected.',
    )

    def stages(self, num_classes: int) -> tuple[Stage, ...]:
        """The stages of a data set under this protocol; see `make_stages`."""
        return make_stages(
            num_classes,
            base=self.base,
            increment=self.increment,
            added=self.added,
            order=self.order,
        )


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its schedule; milestones are fractions, so that they suit stages of any length."""

    base_learning_rate: float = declare(1e-4, 'Learning rate of stage 1.', at_least=0)
    later_learning_rate: float = declare(5e-5, 'Learning rate of every later stage.', at_least=0)
    backbone_multiplier: float = declare(
        0.1, 'Learning rate of the backbone relative to that of the rest.', at_least=0
    )
    decay: str = declare(
        'steps',
        "How the learning rate of a stage decays: 'steps' = by `decay_factor` at each of the "
        "`milestones`; 'polynomial' = to 0 with the power 0.9, as in the original Mask2Former on "
        'ADE20K.',
        choices=('steps', 'polynomial'),
    )
    milestones: tuple[float, ...] = declare(
        (0.85, 0.95),
        'Fractions of a stage at which the learning rate decays.',
        above=0,
        below=1,
        rising=True,
    )
    decay_factor: float = declare(
        0.1, 'Factor on the learning rate at each milestone.', at_least=0, at_most=1
    )
    warmup_steps: int = declare(0, 'Steps of linear warm-up at the start of a stage.', at_least=0)
    weight_decay: float = declare(
        0.05, 'Weight decay; not applied to norms and embeddings.', at_least=0
    )
    clip_norm: float = declare(
        0.01, 'Maximum global gradient norm; at 0.01 nearly every step is clipped.', above=0
    )
    b1: float = declare(0.9, "Decay of Adam's first moment.", at_least=0, below=1)
    b2: float = declare(0.999, "Decay of Adam's second moment.", at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """Length of training, batch size, initial weights, logging and checkpoints."""

    batch_size: int = declare(8, 'Images per step, over all devices.', at_least=1)
    microbatch_size: int = declare(
        0,
        'Images per device at a time (gradient accumulation) to save memory; 0 = all of them.',
        at_least=0,
    )
    base_steps: int = declare(160_000, 'Steps of stage 1.', at_least=1)
    steps_per_class: int = declare(
        1_000, 'Steps of a later stage per class that it adds.', at_least=1
    )
    stop_gradient_from_stage: int = declare(
        1,
        'The first stage that is trained with `model.stop_gradient`; published: 1. With 2, the '
        'decoder also trains the selection of queries in stage 1, which helps if that is short.',
        at_least=1,
    )
    statistics_images: int = declare(
        0, 'Images used to count pseudo-labels before a stage; 0 = all.', at_least=0
    )
    init_from: str = declare(
        '',
        'Folder stage_N of another run or a converted model to continue from; or a pretrained '
        'Mask2Former to start from: a folder of transformers, or a file of detectron2.',
        path=True,
    )
    init_backbone: str = declare(
        '',
        'File of ImageNet weights for the backbone, of torchvision, timm, detectron2 or Swin.',
        path=True,
    )
    seed: int = declare(0, 'Seed of all random numbers.', at_least=0, at_most=2**32 - 1)
    log_every: int = declare(50, 'Steps between log entries.', at_least=1)
    checkpoint_every: int = declare(
        5_000, 'Steps between checkpoints; one is always saved at the end of a stage.', at_least=1
    )
    keep_best: str = declare(
        'none',
        'Score for which the best weights of each stage are kept besides the newest; needs '
        '`evaluation.every`.',
        choices=('none', *SCORES),
    )
    profile_steps: tuple[int, int] = declare(
        (0, 0), 'First and last step of each stage to profile; 0,0 = none.', at_least=0, rising=True
    )
    skip_nonfinite: int = declare(
        0,
        'Steps per stage that may be skipped because of inf or NaN before the run stops.',
        at_least=0,
    )


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """Evaluation after each stage and inside it, and inference in general."""

    every: int = declare(
        0, 'Steps between evaluations inside a stage; 0 = only at its end.', at_least=0
    )
    num_images: int = declare(
        0, 'Images of an evaluation inside a stage, spread over the split; 0 = all.', at_least=0
    )
    tasks: tuple[str, ...] = declare(('panoptic',), 'Tasks to evaluate.', choices=TASKS)
    batch_size: int = declare(
        8, 'Images per batch; rounded up to a multiple of the number of devices.', at_least=1
    )
    short_side: int = declare(640, 'Shorter side of the resized image in pixels.', at_least=1)
    max_side: int = declare(
        2560,
        'Maximum longer side in pixels; the shorter side is reduced to respect it.',
        at_least=1,
    )
    padding: int = declare(
        32,
        'Image sides are padded to multiples of this; larger = fewer compiled shapes, and slightly '
        'different results.',
        at_least=32,
        multiple_of=32,
    )
    object_mask_threshold: float = declare(
        0.3, 'Class probability that a panoptic segment must exceed.', at_least=0, at_most=1
    )
    semantic_threshold: float = declare(
        0.4,
        'Class probability that a query must reach in semantic inference.',
        at_least=0,
        at_most=1,
    )
    overlap_threshold: float = declare(
        0.8,
        'Share of its mask that a segment must keep against overlapping ones.',
        at_least=0,
        at_most=1,
    )
    duplicate_overlap: float = declare(
        1.0,
        'Queries of a class whose masks overlap more than this (IoU) are one segment with the sum '
        'of their probabilities; 1 = off, as published.',
        at_least=0,
        at_most=1,
    )
    semantic_rule: str = declare(
        'segments',
        "How a pixel gets its class: from the confident query that wins it ('segments'), or from "
        "the 'soft_sum' of all queries, as in the original Mask2Former.",
        choices=('segments', 'soft_sum'),
    )
    semantic_resize: str = declare(
        'logits',
        "What semantic inference resizes to the stored image size: the mask 'logits'; the "
        "'labels', as published; or the class 'scores', as in the original Mask2Former.",
        choices=('logits', 'labels', 'scores'),
    )
    num_instances: int = declare(
        100,
        'Predictions per image in instance inference, before those of stuff are removed.',
        at_least=1,
    )
    num_pictures: int = declare(8, 'Images in predictions.png of each stage.', at_least=0)


GROUPS: dict[str, tuple[type, ...]] = {  # The dataclasses that declare the keys of each group.
    'data': (DataSettings,),
    'protocol': (ProtocolSettings,),
    'model': (Mask2Former,),
    **METHOD_GROUPS,
    'loss': (LossWeights, PointSampling),
    'optimizer': (OptimizerSettings,),
    'training': (TrainingSettings,),
    'evaluation': (EvaluationSettings,),
}
DECLARED = {
    f'{group}.{key}': setting
    for group, owners in GROUPS.items()
    for owner in owners
    for key, setting in declared(owner).items()
}


def default_config() -> dict[str, dict[str, Any]]:
    """A complete config: the published values of panoptic 100-10, and the groups of all methods."""
    return nested({key: setting.default for key, setting in DECLARED.items()})
