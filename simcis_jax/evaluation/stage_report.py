"""The scores of a stage as JSON: of every class group and every class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from simcis_jax.errors import InputError
from simcis_jax.evaluation.mean_iou import (
    SemanticCounts,
    iou,
    miou_scores,
    miou_with_background,
)
from simcis_jax.evaluation.panoptic_quality import PQCounts, pq_scores
from simcis_jax.types import Categories

METRICS = (
    *('pq', 'sq', 'rq', 'pq_seen_only'),
    *('miou', 'miou_reference', 'miou_background'),
    *('ap', 'ap50', 'ap75'),
)


def panoptic_report(
    counts: PQCounts,
    groups: Mapping[str, Sequence[int]],
    categories: Categories,
    *,
    seen_only: PQCounts,
) -> dict:
    """PQ, SQ and RQ in percent of every group and class, ready for JSON (None = no score).

    Returns {'pq': {'base': .., 'base_things': .., 'base_stuff': .., 'novel': .., ...},
    'sq': .., 'rq': .., 'pq_seen_only': .., 'per_class': {name: {'pq', 'sq', 'rq', 'tp', 'fp',
    'fn'}}}, where `per_class` lists the classes of the group `all`. `pq_seen_only` is computed from
    the counts `seen_only`, for which pixels of unseen classes are void.
    """
    names = ('pq', 'sq', 'rq')
    report = {name: {} for name in (*names, 'pq_seen_only')}
    for group, classes in groups.items():
        parts = {
            group: classes,
            f'{group}_things': [c for c in classes if categories.is_thing[c]],
            f'{group}_stuff': [c for c in classes if not categories.is_thing[c]],
        }
        for part, members in parts.items():
            scores = pq_scores(counts, members)
            for name in names:
                report[name][part] = _json_number(scores[name])
            report['pq_seen_only'][part] = _json_number(pq_scores(seen_only, members)['pq'])
    per_class = counts.per_class()
    report['per_class'] = {
        categories.names[c]: {name: _json_number(per_class[name][c]) for name in names}
        | {'tp': int(counts.tp[c]), 'fp': int(counts.fp[c]), 'fn': int(counts.fn[c])}
        for c in groups['all']
    }
    return report


def semantic_report(
    counts: SemanticCounts, groups: Mapping[str, Sequence[int]], categories: Categories
) -> dict:
    """Each mIoU in percent of every group, and IoU per class, ready for JSON.

    Returns {'miou': {'base': .., 'novel': .., ...}, 'miou_reference': {..}, 'miou_background':
    {..}, 'per_class': {name: {'iou'}}}; None = no score.
    """
    scores = {group: miou_scores(counts.labelled, classes) for group, classes in groups.items()}
    report = {
        name: {group: _json_number(scores[group][name]) for group in groups}
        for name in ('miou', 'miou_reference')
    }
    background = miou_with_background(counts, groups)
    report['miou_background'] = {group: _json_number(x) for group, x in background.items()}
    return report | {'per_class': _per_class({'iou': iou(counts.labelled)}, groups, categories)}


def instance_report(
    scores: Mapping[str, np.ndarray], groups: Mapping[str, Sequence[int]], categories: Categories
) -> dict:
    """AP in percent of every group and class, ready for JSON, from scores of `average_precision`.

    Returns {'ap': {'base': .., 'novel': .., ...}, 'ap50': {..}, 'ap75': {..}, 'per_class':
    {name: {'ap', 'ap50', 'ap75'}}}. Stuff, and things without a true instance, have no score: None.
    """
    report = {
        name: {group: _mean(values[list(classes)]) for group, classes in groups.items()}
        for name, values in scores.items()
    }
    return report | {'per_class': _per_class(scores, groups, categories)}


def merge_reports(reports: Sequence[Mapping]) -> dict:
    """Merges the reports of several tasks for one stage."""
    merged = {name: scores for report in reports for name, scores in report.items()}
    names = list(reports[0]['per_class'])
    merged['per_class'] = {
        name: {key: value for report in reports for key, value in report['per_class'][name].items()}
        for name in names
    }
    return merged


def check_report(report: Mapping) -> None:
    """Raises an InputError unless an object of JSON has the form of a stage's report."""

    def are_scores(scores, *needed):
        return (
            isinstance(scores, Mapping)
            and all(name in scores for name in needed)
            and all(x is None or _is_finite(x) for x in scores.values())
        )

    per_class = report.get('per_class')
    valid = {
        'stage': isinstance(report.get('stage', 0), int),
        'settings': isinstance(report.get('settings', {}), Mapping),
        'per_class': isinstance(per_class, Mapping) and all(map(are_scores, per_class.values())),
    } | {name: are_scores(report[name], 'all') for name in METRICS if name in report}
    for name, is_valid in valid.items():
        if not is_valid:
            raise InputError(f'field {name!r} is missing or holds something else')


def different_settings(scored: Mapping, other: Mapping, name: str) -> str | None:
    """The evaluation settings of scores that differ from those of others, in words.

    Args:
        scored: the report of a stage, or a record of an evaluation inside one.
        other: the report or record to compare with.
        name: what the message calls `other`, such as 'stage 3'.

    Returns:
        A list of settings; None if there is no difference or one of the settings is unknown.
    """
    here, there = scored.get('settings'), other.get('settings')
    if here is None or there is None:
        return None
    different = ', '.join(
        f'evaluation.{key}={here.get(key)} ({name}: {there[key]})'
        for key in there
        if here.get(key) != there[key]
    )
    return different or None


def _per_class(
    scores: Mapping[str, np.ndarray], groups: Mapping[str, Sequence[int]], categories: Categories
) -> dict:
    return {
        categories.names[c]: {name: _json_number(values[c]) for name, values in scores.items()}
        for c in groups['all']
    }


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and -math.inf < value < math.inf


def _mean(values: np.ndarray) -> float | None:
    """The mean over the classes that have a score."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def _json_number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
