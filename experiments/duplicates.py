"""Duplicate predictions: how many queries claim the same segment, and their highest score.

    python -m experiments.duplicates --data=shapes --workdir=runs/shapes

Not in the paper; it explains differences between the rows of its tables. Each segment is matched to
one query, but queries selected at neighbouring pixels are nearly identical. Until training
separates them, all of them predict the segment with a low probability, which falls below
`object_mask_threshold` and below the threshold of pseudo-labels. Measured on validation images with
the model after stage 1. The runs are those of `forgetting`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from experiments import command, forgetting, tables
from experiments.experiment import Experiment, Results
from experiments.features import load_params, make_network, validation_examples
from experiments.sweep import Run
from simcis_jax.data.source import Example
from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.runtime.json_files import read_json

NUM_IMAGES = 64
CLAIM = 0.1  # A query claims a class if it gives it a probability above this.
KINDS = ('things', 'stuff')


def claims(
    probabilities: np.ndarray, labels: Sequence[int], classes: Iterable[int]
) -> dict[int, tuple[float, float]]:
    """For each class in an image: claiming queries per segment, and the highest probability.

    Args:
        probabilities: [Q, C] class probabilities of every query.
        labels: labels of the image's segments.
        classes: labels to count; classes without a segment are left out.
    """
    labels = np.asarray(labels)
    found = {}
    for label in classes:
        if segments := int((labels == label).sum()):
            column = probabilities[:, label]
            found[label] = (float((column > CLAIM).sum()) / segments, float(column.max()))
    return found


@functools.partial(jax.jit, static_argnums=0)
def probabilities(model: Mask2Former, params: Any, image: Array) -> Array:
    """Class probabilities [Q, C] of every query for an image [H, W, 3]."""
    return jax.nn.sigmoid(model.apply({'params': params}, image[None]).class_logits[-1, 0])


def measure(run: Run, examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """`claims` of all examples and base classes as [N, 2], separately for things and stuff."""
    model, params = make_network(run), load_params(run, 1)
    is_thing = [bool(entry['isthing']) for entry in read_json(run.folder / 'categories.json', list)]
    found = {kind: [] for kind in KINDS}
    for example in examples:
        left = np.unique(example.segment_map)  # The crop may have removed segments.
        labels = example.labels[left[left > 0] - 1]
        predicted = np.asarray(probabilities(model, params, example.image))
        for label, claim in claims(predicted, labels, run.base_classes).items():
            found[KINDS[0] if is_thing[label] else KINDS[1]].append(claim)
    return {kind: np.array(pairs, float).reshape(-1, 2) for kind, pairs in found.items()}


def analyze(runs: Sequence[Run], results: Results, folder: Path) -> str:
    """A table of the finished runs; the seeds of a variant are pooled."""
    del folder
    done = [run for run in runs if run.folder in results]
    if not done:
        return ''
    examples = validation_examples(done[0], NUM_IMAGES)  # The same for all runs.
    rows: dict[str, list[dict[str, np.ndarray]]] = {}
    for run in done:
        rows.setdefault(run.variant.label, []).append(measure(run, examples))
    measured = {
        label: {kind: np.concatenate([one[kind] for one in found]) for kind in KINDS}
        for label, found in rows.items()
    }
    return table(done[0], measured)


def table(run: Run, measured: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Means over images and base classes, and how often the highest score passes the threshold.

    Args:
        run: any of the runs; gives the name of the setting and the threshold.
        measured: results of `measure` by label of the variant.
    """
    threshold = run.config['evaluation']['object_mask_threshold']
    columns = ('queries per segment', 'highest probability', f'above {threshold}')
    head = ['', *(f'{kind}: {column}' for kind in KINDS for column in columns)]
    rows = []
    for label, found in measured.items():
        cells = [label]
        for kind in KINDS:
            pairs = found[kind]
            if len(pairs):
                (queries, highest), above = pairs.mean(axis=0), np.mean(pairs[:, 1] > threshold)
                cells += [f'{queries:.1f}', f'{highest:.2f}', f'{100 * above:.0f} %']
            else:
                cells += ['-'] * len(columns)
        rows.append(cells)
    title = f'{run.setting}: queries that claim the same segment, after stage 1'
    return tables.table(title, head, rows)


EXPERIMENT = Experiment(
    name='duplicates',
    title='Queries that claim the same segment',
    settings=forgetting.EXPERIMENT.settings,
    variants=[
        v
        for v in forgetting.EXPERIMENT.variants
        if v.label in ('pseudo-labels, learned queries', 'SimCIS', 'no stop gradient')
    ],
    with_scores=False,
    analyze=analyze,
)

if __name__ == '__main__':
    command.main(EXPERIMENT)
