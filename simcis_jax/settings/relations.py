"""Relations that must hold between config values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from simcis_jax.model.backbones import BACKBONES, coarsest_stride

SCORES = {'pq': 'panoptic', 'miou': 'semantic', 'ap': 'instance'}  # Main score -> its task.


def contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    """One line per relation that does not hold.

    Args:
        values: values by 'group.key'; relations that involve a missing key are skipped.
    """
    for (key, *others), requirement in RELATIONS.items():
        if values.keys() >= {key, *others}:
            words = requirement(*(values[name] for name in (key, *others)))
            if words:
                yield f'{key}={values[key]!r} must be {words}.'


# Each returns what its first value must be, in words, or None if the relation holds.


def _one_query_per_segment(max_segments: int, num_queries: int) -> str | None:
    if max_segments > num_queries:
        return f'at most model.num_queries={num_queries}; a query matches one segment'
    return None


def _whole_coarsest_map(size: int, backbone: str) -> str | None:
    stride = coarsest_stride(backbone)
    if size % stride:
        return f'a multiple of {stride}, the coarsest stride of model.backbone={backbone!r}'
    return None


def _equal_heads(hidden_dim: int, num_heads: int) -> str | None:
    return f'a multiple of model.num_heads={num_heads}' if hidden_dim % num_heads else None


def _equal_norm_groups(hidden_dim: int) -> str | None:
    if hidden_dim >= 64 and hidden_dim % 32:  # See `group_norm`.
        return 'a multiple of 32 from 64 on; its channels are normalised in 32 groups'
    return None


def _images_remain(hold_out: int) -> str | None:
    return '0, or at least 2; with 1, no image is left to train on' if hold_out == 1 else None


def _enough_positions(
    short_side: int, padding: int, backbone: str, queries: str, num_queries: int
) -> str | None:
    side, stride = -(-short_side // padding) * padding, coarsest_stride(backbone)
    # Queries are selected from the three maps of the pixel decoder.
    positions = sum(math.ceil(side * finer / stride) ** 2 for finer in (1, 2, 4))
    if queries == 'selected' and positions < num_queries:
        return (
            f'larger: a square of it has {positions} positions to select '
            f'model.num_queries={num_queries} from'
        )
    return None


def _short_is_shorter(short_side: int, max_side: int) -> str | None:
    return f'at most evaluation.max_side={max_side}' if short_side > max_side else None


def _needed_to_select(needed: bool | str) -> Callable[[bool | str, str], str | None]:
    """Selected queries are placed by their boxes and ranked by the probabilities of each class."""

    def requirement(value: bool | str, queries: str) -> str | None:
        if queries == 'selected' and value != needed:
            return f"{needed!r} with model.queries='selected'"
        return None

    return requirement


def _no_prior_of_softmax(class_prior: float | None, head: str) -> str | None:
    if class_prior is not None and head == 'softmax':
        return "None with model.head='softmax', whose probabilities add up to 1"
    return None


def _depth_of_swin(stochastic_depth: float, backbone: str) -> str | None:
    if stochastic_depth and BACKBONES[backbone].family != 'swin':
        return f'0 with model.backbone={backbone!r}, which is no Swin transformer'
    return None


def _part_of_the_rule(resized: str, rule: str) -> str | None:
    result = 'scores' if rule == 'soft_sum' else 'labels'
    if resized not in ('logits', result):
        return f"'logits' or {result!r} with evaluation.semantic_rule={rule!r}"
    return None


def _best_is_evaluated(keep_best: str, every: int, tasks: tuple[str, ...]) -> str | None:
    task = SCORES.get(keep_best)
    if task and not every:
        return "'none' with evaluation.every=0; nothing is evaluated inside a stage"
    if task and task not in tasks:
        return f"'none' unless evaluation.tasks has {task!r}"
    return None


RELATIONS = {
    ('data.hold_out',): _images_remain,
    ('data.max_segments', 'model.num_queries'): _one_query_per_segment,
    ('data.size', 'model.backbone'): _whole_coarsest_map,
    ('model.hidden_dim', 'model.num_heads'): _equal_heads,
    ('model.hidden_dim',): _equal_norm_groups,
    ('model.boxes', 'model.queries'): _needed_to_select(True),
    ('model.head', 'model.queries'): _needed_to_select('sigmoid'),
    ('model.class_prior', 'model.head'): _no_prior_of_softmax,
    ('model.stochastic_depth', 'model.backbone'): _depth_of_swin,
    ('evaluation.semantic_resize', 'evaluation.semantic_rule'): _part_of_the_rule,
    ('evaluation.short_side', 'evaluation.max_side'): _short_is_shorter,
    (
        'evaluation.short_side',
        'evaluation.padding',
        'model.backbone',
        'model.queries',
        'model.num_queries',
    ): _enough_positions,
    ('training.keep_best', 'evaluation.every', 'evaluation.tasks'): _best_is_evaluated,
}
