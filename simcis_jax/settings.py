"""What a config may say: every key with its default, its meaning and the values it may have."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from simcis_jax.continual.protocol import SETTINGS
from simcis_jax.continual.stages import Stage, make_stages
from simcis_jax.errors import InputError
from simcis_jax.losses.matcher import LossWeights
from simcis_jax.losses.segmentation import PointSampling
from simcis_jax.methods import METHODS, Method, make_method
from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.setting import declare, declared
from simcis_jax.settings_relations import contradictions

DATA_SETS = ('coco_panoptic', 'prepared', 'semantic_folder', 'shapes')
TASKS = ('panoptic', 'semantic', 'instance')


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which images, and how they are augmented."""

    name: str = declare(
        'coco_panoptic', "Data set; 'shapes' is built in and needs no files.", choices=DATA_SETS
    )
    root: str = declare('', 'Folder of the data set.', path=True)
    train_split: str = declare('train', 'Split to train on.')
    val_split: str = declare('val', 'Split to evaluate on.')
    num_train_images: int = declare(0, "Training images of 'shapes'; 0 = its default.", at_least=0)
    num_val_images: int = declare(0, "Evaluation images of 'shapes'; 0 = its default.", at_least=0)
    size: int = declare(640, 'Side of the square training crop in pixels.', at_least=1)
    max_segments: int = declare(
        100, 'Target slots of an image; the largest segments get them.', at_least=1
    )
    scale_range: tuple[float, float] = declare(
        (0.5, 2.0),
        'Random shorter side, in units of `size`; (1, 1) keeps images as they are.',
        above=0,
        rising=True,
    )
    scale_steps: int = declare(16, 'Number of evenly spaced scales in `scale_range`.', at_least=1)
    flip: bool = declare(True, 'Mirror images at random.')
    color: bool = declare(True, 'Jitter brightness, contrast, saturation and hue.')
    keep_empty: bool = declare(
        False, 'Keep segments that cropping emptied as targets; published: True.'
    )
    num_workers: int = declare(
        0, 'Processes that load images; 0 = threads of this process.', at_least=0
    )


@dataclasses.dataclass(frozen=True)
class ProtocolSettings:
    """Which classes arrive when (A-B)."""

    base: int = declare(100, 'A, the classes of stage 1; all classes = joint training.', at_least=1)
    increment: int = declare(10, 'B, the classes of every later stage.', at_least=1)
    added: tuple[int, ...] = declare(
        (), 'Classes of each stage after these, for classes that no one foresaw.', at_least=1
    )
    order: str | tuple[int, ...] = declare(
        'origin',
        "Class order: 'origin', 'descending', 'ade20k_1' to 'ade20k_10', or the labels.",
        at_least=0,
    )
    setting: str = declare('overlapped', 'Which images a stage trains on.', choices=SETTINGS)
    replay_images: int = declare(
        0, 'Images of past stages to keep and train on again; 0 = no limit.', at_least=0
    )
    replay_megabytes: float = declare(
        0.0, 'Room for replayed images, in 1e6 bytes; 0 = no limit. Both 0 = no replay.', at_least=0
    )
    mask_unseen: bool = declare(True, 'Let only classes seen so far compete; published: False.')

    def stages(self, num_classes: int) -> tuple[Stage, ...]:
        """The stages that the protocol makes of a data set; see `make_stages`."""
        return make_stages(
            num_classes,
            base=self.base,
            increment=self.increment,
            added=self.added,
            order=self.order,
        )


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its schedule; milestones are fractions of a stage, so all stages share them."""

    base_learning_rate: float = declare(1e-4, 'Learning rate of stage 1.', at_least=0)
    later_learning_rate: float = declare(5e-5, 'Learning rate of every later stage.', at_least=0)
    backbone_multiplier: float = declare(
        0.1, 'Learning rate of the backbone over that of the rest.', at_least=0
    )
    milestones: tuple[float, ...] = declare(
        (0.85, 0.95),
        'Fractions of a stage at which the rate decays.',
        above=0,
        below=1,
        rising=True,
    )
    decay_factor: float = declare(
        0.1, 'Multiplies the rate at each milestone.', at_least=0, at_most=1
    )
    warmup_steps: int = declare(0, 'Steps of linear warm-up at the start of a stage.', at_least=0)
    weight_decay: float = declare(0.05, 'Weight decay; norms and embeddings have none.', at_least=0)
    clip_norm: float = declare(
        0.01, 'Largest global gradient norm; at 0.01 nearly every step is clipped.', above=0
    )
    b1: float = declare(0.9, "Decay of Adam's first moment.", at_least=0, below=1)
    b2: float = declare(0.999, "Decay of Adam's second moment.", at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How long and how to train."""

    batch_size: int = declare(8, 'Images of a step, over all devices.', at_least=1)
    microbatch_size: int = declare(
        0, 'Images that a device computes at once, to save memory; 0 = its whole share.', at_least=0
    )
    base_steps: int = declare(160_000, 'Steps of stage 1.', at_least=1)
    steps_per_class: int = declare(
        1_000, 'Steps of every later stage, for each of its classes.', at_least=1
    )
    statistics_images: int = declare(
        0, 'Images that pseudo-labels are counted on before a stage; 0 = all.', at_least=0
    )
    init_from: str = declare(
        '', 'Folder stage_N of a finished run; go on after it instead of training it.', path=True
    )
    init_backbone: str = declare(
        '', 'ImageNet weights to start from: torchvision, timm or detectron2.', path=True
    )
    seed: int = declare(0, 'Seed of all random numbers.', at_least=0, at_most=2**32 - 1)
    log_every: int = declare(50, 'Steps between entries of the log.', at_least=1)
    checkpoint_every: int = declare(
        5_000, 'Steps between checkpoints; the end of a stage is always kept.', at_least=1
    )
    skip_nonfinite: int = declare(
        0, 'Steps of a stage that may be left out because of inf or NaN.', at_least=0
    )


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """What a model is scored on after each stage, and how predictions become results."""

    tasks: tuple[str, ...] = declare(('panoptic',), 'What to score.', choices=TASKS)
    batch_size: int = declare(
        8, 'Images at once; rounded up to a multiple of the devices.', at_least=1
    )
    short_side: int = declare(640, 'Shorter side of the resized image in pixels.', at_least=1)
    max_side: int = declare(
        2560, 'Longer side at most; the shorter one then gives way.', at_least=1
    )
    padding: int = declare(
        32,
        'Sides are padded to multiples of it; more = fewer shapes, other results.',
        at_least=32,
        multiple_of=32,
    )
    object_mask_threshold: float = declare(
        0.3, 'Class score that a panoptic segment must exceed.', at_least=0, at_most=1
    )
    semantic_threshold: float = declare(
        0.4, 'Class score that a semantic mask must reach.', at_least=0, at_most=1
    )
    overlap_threshold: float = declare(
        0.8, 'Share of its mask that a segment must keep.', at_least=0, at_most=1
    )
    semantic_resize: str = declare(
        'logits',
        "What is resized to the stored size; published: 'labels'.",
        choices=('logits', 'labels'),
    )
    num_instances: int = declare(
        100, 'Instances of an image; those of stuff classes are left out afterwards.', at_least=1
    )
    num_pictures: int = declare(8, 'Rows of the picture after each stage.', at_least=0)


@dataclasses.dataclass(frozen=True)
class MethodChoice:
    """The continual method; a method reads those of the other keys that it has."""

    name: str = declare(
        'simcis',
        'Continual method; it reads those of the other keys that it has.',
        choices=tuple(METHODS),
    )


GROUPS: dict[str, tuple[type, ...]] = {  # What declares the keys of each group.
    'data': (DataSettings,),
    'protocol': (ProtocolSettings,),
    'model': (Mask2Former,),
    'method': (MethodChoice, *METHODS.values()),
    'loss': (LossWeights, PointSampling),
    'optimizer': (OptimizerSettings,),
    'training': (TrainingSettings,),
    'evaluation': (EvaluationSettings,),
}
DECLARED = {
    group: {key: value for owner in owners for key, value in declared(owner).items()}
    for group, owners in GROUPS.items()
}


def default_config() -> dict[str, dict[str, Any]]:
    """Every group and key of a config, with the published panoptic 100-10 values."""
    return {
        group: {key: value.default for key, value in keys.items()}
        for group, keys in DECLARED.items()
    }


@dataclasses.dataclass(frozen=True)
class Settings:
    """A checked config."""

    data: DataSettings
    protocol: ProtocolSettings
    model: Mapping[str, Any]
    method: Method
    weights: LossWeights
    sampling: PointSampling
    optimizer: OptimizerSettings
    training: TrainingSettings
    evaluation: EvaluationSettings


def from_config(config: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Turns a config into values; a key that it leaves out has its default.

    Raises:
        InputError: keys are unknown, values are not allowed or contradict each other. The message
            has a line for every fault.
    """
    faults = list(_unknown_keys(config))
    values = {}
    for group, keys in DECLARED.items():
        given = config.get(group)
        given = given if isinstance(given, Mapping) else {}
        for name, declaration in keys.items():
            key = f'{group}.{name}'
            try:
                values[key] = declaration.check(key, given.get(name, declaration.default))
            except InputError as error:
                faults.append(str(error))
    faults += contradictions(values)
    if faults:
        raise InputError('\n'.join(faults))

    def of(group: str, owner: type | None = None) -> dict[str, Any]:
        keys = declared(owner) if owner else DECLARED[group]
        return {name: values[f'{group}.{name}'] for name in keys}

    return Settings(
        data=DataSettings(**of('data')),
        protocol=ProtocolSettings(**of('protocol')),
        model=of('model'),
        method=make_method(**of('method')),
        weights=LossWeights(**of('loss', LossWeights)),
        sampling=PointSampling(**of('loss', PointSampling)),
        optimizer=OptimizerSettings(**of('optimizer')),
        training=TrainingSettings(**of('training')),
        evaluation=EvaluationSettings(**of('evaluation')),
    )


def _unknown_keys(config: Mapping[str, Any]) -> Iterator[str]:
    """A line for every group or key that nothing reads, with the nearest known key."""
    known = [f'{group}.{key}' for group, keys in DECLARED.items() for key in keys]
    given = [
        f'{group}.{key}' if isinstance(keys, Mapping) else group
        for group, keys in config.items()
        for key in (keys if isinstance(keys, Mapping) else [group])
    ]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f'did you mean {near[0]!r}?' if near else f'known groups: {", ".join(DECLARED)}'
            yield f'config key {key!r} is unknown, nothing reads it; {hint}'
