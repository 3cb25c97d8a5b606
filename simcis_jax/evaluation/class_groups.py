"""The class groups of a stage: base, novel, past, current and all."""

from __future__ import annotations

from collections.abc import Sequence

GROUPS = ('base', 'novel', 'past', 'current', 'all')


def class_groups(stages: Sequence[Sequence[int]], index: int) -> dict[str, tuple[int, ...]]:
    """The labels of each group of GROUPS after a stage t.

    base = C^1, novel = C^2..t, past = C^1..t-1, current = C^t, all = C^1..t. In the first stage,
    novel and past are empty.

    Args:
        stages: the labels that each stage adds.
        index: t - 1; 0 is the base stage.

    Raises:
        ValueError: the stage does not exist.
    """
    if not 0 <= index < len(stages):
        raise ValueError(f'Stage {index} does not exist; there are stages 0..{len(stages) - 1}.')

    def join(parts):
        return tuple(label for part in parts for label in part)

    return {
        'base': tuple(stages[0]),
        'novel': join(stages[1 : index + 1]),
        'past': join(stages[:index]),
        'current': tuple(stages[index]),
        'all': join(stages[: index + 1]),
    }
