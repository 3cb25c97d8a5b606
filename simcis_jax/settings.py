"""What a config may say: every key with its default and meaning, checked once at start-up."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from simcis_jax.continual.protocol import SETTINGS
from simcis_jax.errors import InputError
from simcis_jax.losses.matcher import LossWeights
from simcis_jax.losses.segmentation import PointSampling
from simcis_jax.methods import Method, default_settings, make_method
from simcis_jax.model.mask2former import Mask2Former


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which images, and how they are augmented."""

    name: str = 'coco_panoptic'  # Or 'semantic_folder', 'prepared', 'shapes' (built in).
    root: str = ''  # Folder of the data set.
    train_split: str = 'train'
    val_split: str = 'val'
    num_train_images: int = 0  # Of 'shapes'; 0 = its default.
    num_val_images: int = 0
    size: int = 640  # Side of the training crop in pixels.
    max_segments: int = 100  # Target slots of an image.
    scale_range: tuple[float, float] = (0.5, 2.0)  # Shorter side over `size`.
    scale_steps: int = 16
    flip: bool = True
    color: bool = True
    keep_empty: bool = False  # Published: segments that cropping emptied stay targets.
    num_workers: int = 0  # Processes that read data; 0 = threads of this one.


@dataclasses.dataclass(frozen=True)
class ProtocolSettings:
    """Which classes arrive when (A-B)."""

    base: int = 100  # A; all classes = joint training.
    increment: int = 10  # B
    added: tuple[int, ...] = ()  # Classes of stages after these, for classes no one foresaw.
    order: str | tuple[int, ...] = 'origin'  # Or 'descending', 'ade20k_1' to _10, or labels.
    setting: str = 'overlapped'  # Or 'disjoint', 'sequential': which images a stage trains on.
    replay_images: int = 0  # Images of past stages to keep and train on again; 0 = no limit.
    replay_megabytes: float = 0.0  # Room for them (10**6 bytes); 0 = no limit. Both 0 = none kept.
    mask_unseen: bool = True  # Published: False, classes yet to come compete too.


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its schedule; milestones are fractions of a stage, so all stages share them."""

    base_learning_rate: float = 1e-4  # Stage 1.
    later_learning_rate: float = 5e-5  # Every later stage.
    backbone_multiplier: float = 0.1
    milestones: tuple[float, ...] = (0.85, 0.95)
    decay_factor: float = 0.1  # At each milestone.
    warmup_steps: int = 0
    weight_decay: float = 0.05
    clip_norm: float = 0.01  # Global norm; so small that nearly every step is clipped.
    b1: float = 0.9
    b2: float = 0.999


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How long and how to train."""

    batch_size: int = 8  # Global: over all devices.
    microbatch_size: int = 0  # Of a device; 0 = its whole share. Fewer need less memory.
    base_steps: int = 160_000
    steps_per_class: int = 1_000  # Of every later stage.
    statistics_images: int = 0  # Images seen before a stage to count pseudo-labels; 0 = all.
    init_from: str = ''  # Folder stage_N of a finished run: go on after it instead of training it.
    init_backbone: str = ''  # ImageNet weights to start from: torchvision, timm, detectron2.
    seed: int = 0
    log_every: int = 50  # Steps.
    checkpoint_every: int = 5_000  # Steps; the end of a stage is always kept.
    skip_nonfinite: int = 0  # Steps of a stage that may be left out because of inf or NaN.


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """What a model is scored on after each stage, and how predictions become results."""

    tasks: tuple[str, ...] = ('panoptic',)  # Of 'panoptic', 'semantic', 'instance'.
    batch_size: int = 8  # Global; rounded up to a multiple of the devices.
    short_side: int = 640
    max_side: int = 2560
    padding: int = 32  # Sides become multiples of it. More = fewer shapes, other results.
    object_mask_threshold: float = 0.3  # Of panoptic results.
    semantic_threshold: float = 0.4  # The same, of semantic results.
    overlap_threshold: float = 0.8
    semantic_resize: str = 'logits'  # Published: 'labels', decided at the size of the input.
    num_instances: int = 100  # Of an image; those of stuff classes are left out afterwards.
    num_pictures: int = 8  # Rows of the picture after each stage.

    def __post_init__(self):
        # On the command line `panoptic,semantic` is one string.
        names = tuple(name.strip() for entry in self.tasks for name in entry.split(','))
        object.__setattr__(self, 'tasks', tuple(dict.fromkeys(names)))


_MODEL_FIELDS = {
    field.name: field.default
    for field in dataclasses.fields(Mask2Former)
    if field.name not in ('num_classes', 'parent', 'name')
}


def default_config() -> dict[str, dict[str, Any]]:
    """Every group and key of a config, with the published panoptic 100-10 values."""
    return {
        'data': dataclasses.asdict(DataSettings()),
        'protocol': dataclasses.asdict(ProtocolSettings()),
        'model': dict(_MODEL_FIELDS),
        'method': {'name': 'simcis'} | dict(default_settings()),
        'loss': dataclasses.asdict(LossWeights()) | dataclasses.asdict(PointSampling()),
        'optimizer': dataclasses.asdict(OptimizerSettings()),
        'training': dataclasses.asdict(TrainingSettings()),
        'evaluation': dataclasses.asdict(EvaluationSettings()),
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


def check_keys(config: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ValueError for a group or key that nothing reads, naming the nearest known one."""

    def refuse(key, known):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
        hint = f'did you mean {near[0]!r}?' if near else f'known keys: {sorted(known)}'
        raise InputError(f'config key {key!r} is unknown, nothing reads it; {hint}')

    known = {
        f'{group}.{key}': default
        for group, keys in default_config().items()
        for key, default in keys.items()
    }
    for group, keys in config.items():
        if not isinstance(keys, Mapping):
            refuse(group, known)
        for key in keys:
            if f'{group}.{key}' not in known:
                refuse(f'{group}.{key}', known)


def from_config(config: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Turns a config into values.

    Raises:
        InputError: a key is unknown, or values contradict each other.
    """
    check_keys(config)
    groups = {group: dict(values) for group, values in config.items()}
    loss = groups['loss']
    weights = {field.name: loss.pop(field.name) for field in dataclasses.fields(LossWeights)}
    settings = Settings(
        data=DataSettings(**groups['data']),
        protocol=ProtocolSettings(**groups['protocol']),
        model=groups['model'],
        method=make_method(**groups['method']),
        weights=LossWeights(**weights),
        sampling=PointSampling(**loss),
        optimizer=OptimizerSettings(**groups['optimizer']),
        training=TrainingSettings(**groups['training']),
        evaluation=EvaluationSettings(**groups['evaluation']),
    )
    _check_values(settings)
    return settings


def _check_values(settings: Settings) -> None:
    num_queries = settings.model['num_queries']
    if settings.data.max_segments > num_queries:
        raise InputError(
            f'data.max_segments={settings.data.max_segments} is more than '
            f'model.num_queries={num_queries}; a query matches one segment, so lower the former.'
        )
    method = settings.method
    needs_selection = [
        key
        for key in ('csl_weight', 'num_virtual_queries', 'decoder_kl_weight')
        if getattr(method, key, 0)
    ]
    if settings.model['queries'] != 'selected' and needs_selection:
        raise InputError(
            f'model.queries={settings.model["queries"]!r} has no selected pixel features for '
            f'{", ".join("method." + key for key in needs_selection)}; set these to 0.'
        )
    if settings.protocol.setting not in SETTINGS:
        raise InputError(
            f'protocol.setting={settings.protocol.setting!r} is unknown; one of {SETTINGS}.'
        )
    for key in ('replay_images', 'replay_megabytes'):
        if not getattr(settings.protocol, key) >= 0:
            raise InputError(
                f'protocol.{key}={getattr(settings.protocol, key)} must be 0 or more; with both 0 '
                'no images are replayed.'
            )
    evaluation = settings.evaluation
    if not evaluation.tasks:
        raise InputError("evaluation.tasks is empty; give one task at least, such as 'panoptic'.")
    for key, value, known in (
        *(('tasks', task, ('panoptic', 'semantic', 'instance')) for task in evaluation.tasks),
        ('semantic_resize', evaluation.semantic_resize, ('logits', 'labels')),
    ):
        if value not in known:
            raise InputError(f'evaluation.{key} has {value!r}, which is none of {known}.')
    if evaluation.padding < 32 or evaluation.padding % 32:
        raise InputError(
            f'evaluation.padding={evaluation.padding} must be a multiple of 32, the coarsest '
            'stride of the network.'
        )
    if list(settings.optimizer.milestones) != sorted(settings.optimizer.milestones):
        raise InputError('optimizer.milestones must be fractions of a stage in rising order.')
