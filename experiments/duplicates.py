"""How many queries claim the same segment, and how sure the surest of them is.

    python -m experiments.duplicates --data=shapes --workdir=runs/shapes

Not in the paper; it explains differences between its rows. A segment is matched to one query only.
Queries picked from neighbouring pixels are nearly the same, and until training has told them apart,
they share that one's probability: too little for `object_mask_threshold`, and for a pseudo-label.
Counted on validation images with the model after stage 1. The runs are those of `forgetting`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import command, forgetting, tables
from experiments.experiment import Experiment, Results
from experiments.features import load_params, make_network, validation_examples
from experiments.sweep import Run
from simcis_jax.data.category_list import read_json

NUM_IMAGES = 64
CLAIM = 0.1  # The probability of a class from which on a query claims it.
KINDS = ('things', 'stuff')


def claims(
    probabilities: np.ndarray, labels: Sequence[int], classes: Iterable[int]
) -> dict[int, tuple[float, float]]:
    """For each class of an image: queries a segment that claim it, and its best probability.

    Args:
        probabilities: [Q, C] of every query and class.
        labels: of the image's segments.
        classes: that count; those without a segment are left out.
    """
    labels = np.asarray(labels)
    found = {}
    for label in classes:
        if segments := int((labels == label).sum()):
            column = probabilities[:, label]
            found[label] = (float((column > CLAIM).sum()) / segments, float(column.max()))
    return found


def measure(run: Run, num_images: int = NUM_IMAGES) -> dict[str, np.ndarray]:
    """Of things and of stuff: `claims` of all images and base classes, [N, 2]."""
    model, params = make_network(run), load_params(run, 1)

    @jax.jit
    def probabilities(image):
        return jax.nn.sigmoid(model.apply({'params': params}, image[None]).class_logits[-1, 0])

    is_thing = [bool(entry['isthing']) for entry in read_json(run.folder / 'categories.json', list)]
    found = {kind: [] for kind in KINDS}
    for example in validation_examples(run, num_images):
        left = np.unique(example.segment_map)  # The square may have cut segments off.
        labels = np.asarray(example.labels)[left[left > 0] - 1]
        image = np.asarray(probabilities(jnp.asarray(example.image)))
        for label, claim in claims(image, labels, run.base_classes).items():
            found[KINDS[0] if is_thing[label] else KINDS[1]].append(claim)
    return {kind: np.array(pairs, float).reshape(-1, 2) for kind, pairs in found.items()}


def more(runs: Sequence[Run], results: Results, folder: Path) -> str:
    """A table of the finished runs, all seeds of a row together."""
    del folder
    rows: dict[str, list[dict[str, np.ndarray]]] = {}
    for run in runs:
        if run.folder in results:
            rows.setdefault(run.variant.label, []).append(measure(run))
    measured = {
        label: {kind: np.concatenate([one[kind] for one in found]) for kind in KINDS}
        for label, found in rows.items()
    }
    return table(runs[0], measured) if measured else ''


def table(run: Run, measured: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Means over images and base classes, and how often the surest query is sure enough.

    Args:
        run: any of the runs, for its name and its threshold.
        measured: what `measure` found, by row.
    """
    threshold = run.config['evaluation']['object_mask_threshold']
    columns = ('queries that claim one', 'best probability', f'above {threshold}')
    head = ['', *(f'{kind}: {column}' for kind in KINDS for column in columns)]
    lines = []
    for label, found in measured.items():
        cells = [label]
        for kind in KINDS:
            pairs = found[kind]
            if len(pairs):
                (queries, best), sure = pairs.mean(axis=0), np.mean(pairs[:, 1] > threshold)
                cells += [f'{queries:.1f}', f'{best:.2f}', f'{100 * sure:.0f} %']
            else:
                cells += ['-'] * len(columns)
        lines.append(tables.line(cells))
    title = f'### {run.setting}: queries that claim the same segment after stage 1'
    rule = tables.line(['---', *['---:'] * (len(head) - 1)])
    return '\n'.join([title, '', tables.line(head), rule, *lines, ''])


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
    more=more,
)

if __name__ == '__main__':
    command.main(EXPERIMENT)
