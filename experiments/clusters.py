"""Figures 2 and 8: k-means on the finest feature map, after the first and after the last stage.

    python -m experiments.clusters --data=shapes --workdir=runs/shapes
    python -m experiments.clusters --data=ade20k --data_root=DATA --workdir=runs/ade20k

If the clusters stay the same, later stages have not changed how the feature map groups pixels. All
images are clustered together; the clusters after the last stage are matched to those after stage 1
by overlap, so that they have the same colours. The adjusted Rand index measures the agreement
(1 = identical, 0 = chance). The runs are those of `components`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import jax
import numpy as np
from matplotlib import colormaps
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment

from experiments import command, drift, figures, tables
from experiments.experiment import Experiment, Results
from experiments.features import load_params, make_network, validation_images
from experiments.sweep import Run
from simcis_jax.data.part import spread

NUM_IMAGES = 24
NUM_SHOWN = 4
NUM_CLUSTERS = 10
SIDE = 256  # Side of a picture in pixels.


def cluster(features: np.ndarray, num_clusters: int, seed: int = 0) -> np.ndarray:
    """The k-means cluster [...] of every vector [..., D], after normalization to unit length."""
    vectors = features.reshape(-1, features.shape[-1]).astype(np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    _, labels = kmeans2(vectors, num_clusters, iter=30, minit='++', seed=seed)
    return labels.reshape(features.shape[:-1])


def contingency_table(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Number of elements with label i in `a` and label j in `b`: [labels, labels]."""
    size = int(max(a.max(), b.max())) + 1
    return np.bincount(a.ravel() * size + b.ravel(), minlength=size * size).reshape(size, size)


def match_labels(labels: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Renumbers clusters by the one-to-one assignment with the largest overlap with `reference`."""
    overlap = contingency_table(labels, reference)
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    return columns[np.argsort(rows)][labels]


def adjusted_rand_index(a: np.ndarray, b: np.ndarray) -> float:
    """Agreement of two clusterings over pairs of elements: 1 = identical, 0 = chance."""

    def pairs(counts):
        return float((counts * (counts - 1) / 2).sum())

    table = contingency_table(a, b)
    both, in_a, in_b = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    expected = in_a * in_b / pairs(np.array(a.size))
    most = (in_a + in_b) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


def feature_maps(run: Run, stage: int, images: np.ndarray) -> np.ndarray:
    """The finest feature map [N, h, w, D] of images [N, H, W, 3] after a stage."""
    model = make_network(run)

    @jax.jit
    def describe(params):
        return jax.lax.map(lambda image: drift.features(model, params, image[None])[0][0], images)

    return np.asarray(describe(load_params(run, stage)))


def analyze(runs: Sequence[Run], results: Results, folder: Path) -> str:
    """A figure of the clusters of each finished variant (first seed), and a table of agreement."""
    found = {run.variant.label: run for run in reversed(runs) if run.folder in results}
    found = {label: found[label] for label in drift.LABELS if label in found}
    if not found:
        return ''
    run = next(iter(found.values()))
    images, last = validation_images(run, NUM_IMAGES), len(run.stages)
    columns, indices = {'image': images}, []
    for label, run in found.items():
        before, after = (
            cluster(feature_maps(run, stage, images), NUM_CLUSTERS) for stage in (1, last)
        )
        after = match_labels(after, before)
        name = label.replace(', ', ',\n')
        columns |= {f'{name}\nafter stage 1': before, f'{name}\nafter stage {last}': after}
        indices.append([label, f'{adjusted_rand_index(before, after):.3f}'])
    shown = spread(np.arange(len(images)), NUM_SHOWN).tolist()
    rows = [[picture(column[index]) for column in columns.values()] for index in shown]
    figure = figures.grid('Clusters of the finest feature map', list(columns), rows)
    figures.save(figure, folder / f'clusters-{run.setting}')
    title = f'{run.setting}: {NUM_CLUSTERS} clusters after the first and the last stage'
    return tables.table(title, ['', 'adjusted Rand index'], indices)


def picture(content: np.ndarray) -> np.ndarray:
    """Renders an image [H, W, 3] or cluster labels [h, w] as a picture [SIDE, SIDE, 3]."""
    if content.ndim == 3:
        return cv2.resize(content, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    colors = (np.array(colormaps['tab20'].colors) * 255).astype(np.uint8)
    return cv2.resize(colors[content % 20], (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)


EXPERIMENT = Experiment(
    name='clusters',
    title='Clusters of the finest feature map',
    settings=drift.EXPERIMENT.settings,
    variants=drift.EXPERIMENT.variants,
    with_scores=False,
    analyze=analyze,
)

if __name__ == '__main__':
    command.main(EXPERIMENT)
