"""Trials of hyper-parameters for small data, equally many for every method.

    python -m experiments.tuning --data=shapes --workdir=runs/shapes --seeds=3
    python -m experiments.tuning --data=camvid --data_root=DIR --workdir=runs/camvid --seeds=3

The published hyper-parameters were chosen for 150 classes and pretrained weights. For each method,
five trials are made: the published values, half and twice the learning rate of the later stages,
and a smaller and a larger value of the one setting that holds the method to its past. The trial
with the best PQ of all classes is chosen. It is scored on every tenth training image, which no
trial trains on; give seeds that `compare_tuned`, which compares the chosen trials, does not use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import command, compare_methods, tables
from experiments.experiment import Experiment, Results, Setting, metrics
from experiments.scores import METRICS, run_scores
from experiments.sweep import Run, Variant

HOLD_OUT = {'data.hold_out': 10}
LATER_RATE = 'optimizer.later_learning_rate'
# Row of `compare_methods` -> its smaller and its larger trial: a quarter and four times the weight
# of the loss that holds the model to its teacher, if the method has one.
SMALLER_LARGER: Mapping[str, Sequence[Mapping[str, Any]]] = {
    'pseudo-labels': [{'method.pseudo_label.pseudo_label_score': x} for x in (0.1, 0.6)],
    'FuTCR': [{'method.futcr.csl_weight': x} for x in (0.5, 8.0)],
    'SimCIS': [{'method.simcis.csl_weight': x} for x in (0.5, 8.0)],
    'MiB': [{'method.mib.distillation_weight': x} for x in (50.0, 800.0)],
    'PLOP': [{'method.plop.pod_weight': x} for x in (0.00025, 0.004)],
    'CoMFormer': [{'method.comformer.distillation_weight': x} for x in (2.5, 40.0)],
    'BalConpas': [{'method.balconpas.distillation_weight': x} for x in (1.25, 20.0)],
    'ECLIPSE': [{'method.eclipse.deltas': x} for x in ((-0.5,), (0.1, 0.125))],
}
TRIALS = ('published', 'half the rate', 'twice the rate', 'smaller', 'larger')


def trials(label: str, rate: float) -> dict[str, Mapping[str, Any]]:
    """Trial -> config changes.

    Args:
        label: row of `compare_methods`.
        rate: the published learning rate of later stages.
    """
    # Fine-tuning has nothing that holds it to its past; its rate is changed further.
    steps = SMALLER_LARGER.get(label, [{LATER_RATE: factor * rate} for factor in (0.25, 4)])
    changes = ({}, {LATER_RATE: rate / 2}, {LATER_RATE: rate * 2}, *steps)
    return dict(zip(TRIALS, changes, strict=True))


def make_variants(config: ConfigDict, num_classes: int) -> list[Variant]:
    """All trials of all methods that train without replayed images."""
    del num_classes
    rate = config.optimizer.later_learning_rate
    return [
        Variant(
            f'{method.label}: {trial}',
            dict(method.changes) | HOLD_OUT | dict(changes),
            name=f'tuning_{method.label}_{trial}'.replace(' ', '_'),
            families=method.families,
        )
        for method in compare_methods.VARIANTS
        if not method.joint and method.label != 'BalConpas with replay'
        for trial, changes in trials(method.label, rate).items()
    ]


def choose(runs: Sequence[Run], results: Results) -> dict[str, dict[str, float]]:
    """Method -> trial -> mean score of all classes over the seeds, of finished trials."""
    scores: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        if run.folder in results:
            method, trial = run.variant.label.split(': ')
            found = run_scores(results[run.folder], metrics(runs, results)[0])['all']
            scores.setdefault(method, {}).setdefault(trial, []).append(found)
    return {
        method: {trial: float(np.mean(values)) for trial, values in of_method.items()}
        for method, of_method in scores.items()
    }


def analyze(runs: Sequence[Run], results: Results, folder: Path) -> str:
    """Returns one table per setting: the trials of every method, and which is the best."""
    del folder
    texts = []
    for setting in dict.fromkeys(run.setting for run in runs):
        ours = [run for run in runs if run.setting == setting]
        found = choose(ours, results)
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
    variants=make_variants,
    with_scores=False,
    analyze=analyze,
)

if __name__ == '__main__':
    command.main(EXPERIMENT)
