"""Trials of hyper-parameters for small data, equally many for every method.

    python -m experiments.tuning --data=shapes --workdir=runs/shapes --seeds=3
    python -m experiments.tuning --data=camvid --data_root=DIR --workdir=runs/camvid --seeds=3

The published hyper-parameters were chosen for 150 classes and pretrained weights. Each method has
three trials: as published, and with a smaller and a larger value of the one setting that holds it
to its past. The trial with the best PQ of all classes is chosen. It is scored on every tenth
training image, which no trial trains on; give seeds that `compare_tuned`, which compares the chosen
trials, does not use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import command, compare_methods, tables
from experiments.experiment import Experiment, Results, Setting, metrics
from experiments.scores import METRICS, run_scores
from experiments.sweep import Run, Variant

HOLD_OUT = {'data.hold_out': 10}
TRIALS = ('published', 'smaller', 'larger')
# Row of `compare_methods` -> a setting, and its values in the last two trials: a quarter and four
# times what is published, as far as the range of the setting allows. Most are the weight of the
# loss that holds the model to its teacher.
TRIED: Mapping[str, tuple[str, Sequence[Any]]] = {
    'fine-tuning': ('optimizer.later_learning_rate', (1.25e-4, 2e-3)),
    'pseudo-labels': ('method.pseudo_label.pseudo_label_score', (0.0875, 0.7)),
    'FuTCR': ('method.futcr.csl_weight', (0.5, 8.0)),
    'SimCIS': ('method.simcis.csl_weight', (0.5, 8.0)),
    'MiB': ('method.mib.distillation_weight', (50.0, 800.0)),
    'PLOP': ('method.plop.pod_weight', (0.00025, 0.004)),
    'CoMFormer': ('method.comformer.distillation_weight', (2.5, 40.0)),
    'BalConpas': ('method.balconpas.distillation_weight', (1.25, 20.0)),
    'ECLIPSE': ('method.eclipse.deltas', ((0.1, 0.125), (0.8, 1.0))),
}


def trials(label: str) -> dict[str, Mapping[str, Any]]:
    """Trial -> config changes, for a row of `compare_methods`."""
    key, values = TRIED[label]
    return dict(zip(TRIALS, ({}, *({key: value} for value in values)), strict=True))


VARIANTS = [
    Variant(
        f'{method.label}: {trial}',
        {**method.changes, **HOLD_OUT, **changes},
        name=f'tuning_{method.label}_{trial}',
        families=method.families,
    )
    for method in compare_methods.VARIANTS
    if method.label in TRIED
    for trial, changes in trials(method.label).items()
]


def mean_scores(runs: Sequence[Run], results: Results) -> dict[str, dict[str, float]]:
    """Method -> trial -> mean score of all classes, of trials that are finished for all seeds."""
    scores: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        if run.folder in results:
            method, trial = run.variant.label.split(': ')
            found = run_scores(results[run.folder], metrics(runs, results)[0])['all']
            scores.setdefault(method, {}).setdefault(trial, []).append(found)
    num_seeds = len({run.seed for run in runs})
    return {
        method: {t: float(np.mean(x)) for t, x in of_method.items() if len(x) == num_seeds}
        for method, of_method in scores.items()
    }


def analyze(runs: Sequence[Run], results: Results, folder: Path) -> str:
    """Returns one table per setting: the trials of every method, and which is the best."""
    del folder
    texts = []
    for setting in dict.fromkeys(run.setting for run in runs):
        ours = [run for run in runs if run.setting == setting]
        found = mean_scores(ours, results)
        if not found:
            continue
        rows = [
            [
                method,
                *(f'{scores[t]:.1f}' if t in scores else '-' for t in TRIALS),
                max(scores, key=scores.get) if len(scores) == len(TRIALS) else '-',
            ]
            for method, scores in found.items()
        ]
        metric = METRICS[metrics(ours, results)[0]]
        title = f'{setting}: {metric} of all classes on held-out training images'
        texts.append(tables.table(title, ['', *TRIALS, 'chosen'], rows))
    return '\n'.join(texts)


EXPERIMENT = Experiment(
    name='tuning',
    title='Trials of hyper-parameters for small data',
    settings={
        'shapes': [Setting('shapes_cps_published_8_1')],
        'camvid': [Setting('camvid_cps_published_6_1')],
    },
    variants=VARIANTS,
    with_scores=False,
    analyze=analyze,
)

if __name__ == '__main__':
    command.main(EXPERIMENT)
