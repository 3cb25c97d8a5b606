"""What to set when a program does not fit into the memory of a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from benchmarks.chips import RESERVED, Chip
from simcis_jax.settings.validated import Settings


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a program on one device, as planned by the compiler."""

    arguments: float  # And results that do not replace an argument.
    temporaries: float  # And the program itself.

    @property
    def total(self) -> float:
        """All of it."""
        return self.arguments + self.temporaries


def smaller_step(
    memory: Memory, chip: Chip, settings: Settings, images: int
) -> Mapping[str, Any] | None:
    """Config values with which a train step may fit; empty if it fits, None if none is known.

    The estimate is that temporaries grow with the number of images at a time; compile again to be
    sure.

    Args:
        memory: of the step.
        chip: the device.
        settings: the config that was compiled.
        images: images of a step on one device.
    """
    if memory.total <= chip.memory:
        return {}
    if memory.arguments >= chip.memory:
        return None
    now = settings.training.microbatch_size or images
    for fewer in range(now - 1, 0, -1):
        estimate = memory.arguments + memory.temporaries * fewer / now
        if images % fewer == 0 and estimate <= chip.memory:
            return {'training.microbatch_size': fewer}
    changes = {'training.microbatch_size': 1} if now > 1 else {}
    if chip.has_bfloat16 and settings.model['dtype'] == 'float32':
        changes['model.dtype'] = 'bfloat16'
    if not settings.model['rematerialize']:
        changes['model.rematerialize'] = True
    return changes or None


def smaller_evaluation(
    memory: Memory, chip: Chip, settings: Settings, images: int
) -> Mapping[str, Any] | None:
    """As `smaller_step`, for the evaluation: fewer images per batch."""
    if memory.total <= chip.memory:
        return {}
    room = chip.memory - memory.arguments
    fewer = min(int(images * room / memory.temporaries), images - 1)
    if fewer < 1:
        return None
    num_devices = -(-settings.evaluation.batch_size // images)
    return {'evaluation.batch_size': fewer * num_devices}


def flags(changes: Mapping[str, Any]) -> str:
    """Config values as command-line flags."""
    return ' '.join(f'--config.{key}={value}' for key, value in changes.items())


def sentence(memory: Memory, chip: Chip, changes: Mapping[str, Any] | None) -> str:
    """Whether a program fits, and what to set if it does not."""
    need, have = (f'{x / 2**30:.2f} GiB' for x in (memory.total, chip.memory))
    if changes == {}:
        return f'fits: {need} of {have}'
    if chip.gpu and memory.total < 0.95 * chip.memory / RESERVED:
        way = 'XLA_PYTHON_CLIENT_MEM_FRACTION=.95 reserves enough of the GPU'
        return f'does not fit: {need} of {have}; {way}' + (
            f', or try {flags(changes)}' if changes else ''
        )
    if changes is None:
        return f'does not fit: {need} of {have}; it needs a larger device or a smaller network'
    return f'does not fit: {need} of {have}; try {flags(changes)}'
