"""Tables 6 and 7 and the box plot of figure 1: sensitivity to the order of the classes.

    python -m experiments.class_orders --data=shapes --workdir=runs/shapes
    python -m experiments.class_orders --data=ade20k --data_root=DATA --workdir=runs/ade20k

ADE20K uses the paper's ten orders, other data sets use nine random orders and the descending one.
Each order trains its own first stage, which SimCIS and fine-tuning share; fine-tuning is the
baseline for the spread over orders. The paper does not say which order table 6 uses, so every order
is also scored by the base and novel classes of the original order.
"""

from __future__ import annotations

import collections
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import command, figures, paper, tables
from experiments.experiment import Experiment, Results, Setting, class_names, metrics
from experiments.scores import METRICS, run_scores, summarise
from experiments.sweep import Run, Variant
from experiments.tables import Row

PROTOCOL = '100-10'  # The paper's.
FINE_TUNING = 'fine-tuning, '


def variants(config: ConfigDict, num_classes: int) -> Sequence[Variant]:
    """SimCIS with the original order and ten others, then fine-tuning with the same orders."""
    del config
    orders = [f'ade20k_{number}' for number in range(1, 11)]
    if num_classes != 150:
        shuffled = (np.random.default_rng(n).permutation(num_classes) for n in range(1, 10))
        orders = [*(','.join(map(str, labels)) for labels in shuffled), 'descending']
    simcis = [Variant('origin')]
    for number, order in enumerate(orders, start=1):
        simcis.append(Variant(f'order {number}', {'protocol.order': order}, name=f'order={number}'))
    return [*simcis, *map(fine_tuned, simcis)]


def fine_tuned(variant: Variant) -> Variant:
    """The variant that trains the same order by fine-tuning."""
    return Variant(
        FINE_TUNING + variant.label,
        {**variant.changes, 'method.name': 'finetune'},
        name='+'.join(filter(None, [variant.name, 'method.name=finetune'])),
    )


def analyze(runs: Sequence[Run], results: Results, folder: Path) -> str:
    """Tables of scores by the original groups and of the spread over orders, and the box plot."""
    texts = []
    for name in dict.fromkeys(run.setting for run in runs):
        done = [run for run in runs if run.setting == name and run.folder in results]
        for metric in metrics(done, results):
            rows = []
            for label in dict.fromkeys(run.variant.label for run in done):
                scores = {
                    run.seed: run_scores(results[run.folder], metric, original_base(run))
                    for run in done
                    if run.variant.label == label
                }
                rows.append(Row(label, scores))
            if metric == 'pq':
                printed = paper.read('6', PROTOCOL, metric)
                rows += [Row(f'paper: {label}', {}, row) for label, row in printed.items()]
            title = f'{name}: {METRICS[metric]}, classes grouped as in the original order'
            texts.append(tables.markdown(title, rows, 'table 6, ADE20K 100-10'))
            values = {
                f'{method}, {name}': measured_orders(done, results, metric, method)
                for method in ('SimCIS', 'fine-tuning')
            }
            texts.append(spread(f'{name}: {METRICS[metric]} of all classes over orders', values))
            if metric == 'pq':
                values |= paper_orders()
            figure = figures.boxes(f'{METRICS[metric]} over class orders', values)
            figures.save(figure, folder / f'class_orders-{name}-{metric}-boxes')
    return '\n'.join(texts)


def measured_orders(runs: Sequence[Run], results: Results, metric: str, method: str) -> list[float]:
    """Scores of all classes, one per order, of SimCIS or of fine-tuning.

    Each is the mean over seeds; an order counts once as many seeds are finished as of any other.
    """
    of_order = collections.defaultdict(list)
    for run in runs:
        if run.variant.label.startswith(FINE_TUNING) == (method == 'fine-tuning'):
            of_order[run.variant.label].append(run_scores(results[run.folder], metric)['all'])
    most = max(map(len, of_order.values()), default=0)
    return [statistics.fmean(scores) for scores in of_order.values() if len(scores) == most]


def spread(title: str, values: Mapping[str, Sequence[float]]) -> str:
    """A table of the spread of the scores over class orders, as the box plot shows it."""
    head = 'orders mean deviation lowest quartile median quartile highest'.split()
    rows = []
    for label, found in values.items():
        summary = summarise(found)
        if summary:
            deviation = '-' if summary.deviation is None else f'{summary.deviation:.1f}'
            quartiles = [f'{score:.1f}' for score in np.percentile(found, (0, 25, 50, 75, 100))]
            rows.append([label, str(summary.count), f'{summary.mean:.1f}', deviation, *quartiles])
    return tables.table(title, ['', *head], rows)


def original_base(run: Run) -> set[str]:
    """Names of the base classes in the original order, which is that of the labels."""
    return class_names(run, range(len(run.base_classes)))


def paper_orders() -> dict[str, list[float]]:
    """The paper's PQ of all classes, one per order, of SimCIS and ECLIPSE."""
    values = {'SimCIS, paper (ADE20K)': [], 'ECLIPSE, paper (ADE20K)': []}
    for label, row in paper.read('7').items():
        method = 'ECLIPSE' if label.startswith('ECLIPSE') else 'SimCIS'
        values[f'{method}, paper (ADE20K)'].append(row.all)
    return values


EXPERIMENT = Experiment(
    name='class_orders',
    title='Class orders, in percent after the last stage',
    settings={
        'shapes': [Setting('shapes_cps_published_8_2', '7', PROTOCOL)],
        'camvid': [Setting('camvid_cps_published_6_5', '7', PROTOCOL)],
        'ade20k': [Setting('ade_cps_100_10', '7', PROTOCOL)],
        'coco': [Setting('coco_cps_83_5', '7', PROTOCOL)],
    },
    variants=variants,
    analyze=analyze,
)

if __name__ == '__main__':
    command.main(EXPERIMENT)
