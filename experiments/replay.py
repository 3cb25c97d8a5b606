"""Table 5: replay of images or of virtual queries, and the memory that each needs.

    python -m experiments.replay --data=shapes --workdir=runs/shapes
    python -m experiments.replay --data=ade20k --data_root=DATA --workdir=runs/ade20k

All rows use QPA and CSL and share the first stage; a smaller query bank holds the last queries of a
larger one. Megabytes are the image files and labels, or the queries, that the last stage replays.
Queries have 32 bits here and 16 bits in the paper. Two additional rows replay as many images as fit
into the memory of 80 and of 160 queries per class.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import command, figures, paper
from experiments.experiment import Experiment, Results, Setting, metrics, replayed_megabytes
from experiments.scores import METRICS, run_scores
from experiments.sweep import Run, Variant, planned_stages

KINDS = IMAGES, QUERIES = 'images', 'virtual queries a class'
NO_QUERIES = {'method.simcis.num_virtual_queries': 0}


def variants(config: ConfigDict, num_classes: int) -> Sequence[Variant]:
    """The paper's rows, then rows with as many images as fit into the memory of the queries."""
    num_replayed = len(planned_stages(config.protocol, num_classes)[-1].past)
    query_bytes = num_replayed * config.model.hidden_dim * np.dtype(np.float32).itemsize
    return (
        Variant(f'0 {IMAGES}', NO_QUERIES),
        *(
            Variant(f'{count} {IMAGES}', NO_QUERIES | {'protocol.replay_images': count})
            for count in (75, 150, 300, 600)
        ),
        *(
            Variant(f'{count} {QUERIES}', {'method.simcis.bank_size': count})
            for count in (20, 40, 80, 160)
        ),
        *(
            Variant(
                f'{IMAGES} in the bytes of {count} queries',
                NO_QUERIES | {'protocol.replay_megabytes': count * query_bytes / 1e6},
            )
            for count in (80, 160)
        ),
    )


def analyze(runs: Sequence[Run], results: Results, folder: Path) -> str:
    """Writes a figure of score over megabytes, with the paper's numbers in a second panel."""
    for name in dict.fromkeys(run.setting for run in runs):
        done = [run for run in runs if run.setting == name and run.folder in results]
        for metric in metrics(done, results):
            panels = {f'ours, {name}': {kind: sizes(done, results, metric, kind) for kind in KINDS}}
            if metric == 'pq':
                panels['paper, ADE20K 100-5'] = {kind: paper_sizes(kind) for kind in KINDS}
            figure = figures.lines(
                f'{METRICS[metric]} of all classes by what is replayed',
                panels,
                x_labels=['megabytes'] * len(panels),
                y_label=METRICS[metric],
            )
            figures.save(figure, folder / f'replay-{name}-{metric}-sizes')
    return ''


def sizes(runs: Sequence[Run], results: Results, metric: str, kind: str) -> dict[float, float]:
    """Megabytes -> score (means over seeds) of the rows that replay this kind or nothing."""
    found = {}
    for run in runs:
        if kind in run.variant.label or run.variant.label.startswith('0 '):
            score = run_scores(results[run.folder], metric)['all']
            # Seeds keep different images, so that the sizes of a row differ too.
            found.setdefault(run.variant.label, []).append((replayed_megabytes(run) or 0.0, score))
    means = (np.mean(points, axis=0) for points in found.values())
    return {float(size): float(score) for size, score in sorted(means, key=lambda mean: mean[0])}


def paper_sizes(kind: str) -> dict[float, float]:
    """Megabytes -> PQ in the paper."""
    rows = paper.read('5').items()
    return {row.megabytes: row.all for label, row in rows if label.endswith(kind)}


EXPERIMENT = Experiment(
    name='replay',
    title='Replay of images or of virtual queries, in percent after the last stage',
    settings={
        'shapes': [Setting('shapes_cps_published_8_1', '5', '100-5')],
        'camvid': [Setting('camvid_cps_published_6_1', '5', '100-5')],
        'ade20k': [Setting('ade_cps_100_5', '5', '100-5')],
        'coco': [Setting('coco_cps_83_5', '5', '100-5')],
    },
    variants=variants,
    analyze=analyze,
)

if __name__ == '__main__':
    command.main(EXPERIMENT)
