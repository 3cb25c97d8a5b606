"""Compares the continual methods of a protocol over seeds, and joint training with them.

    python -m experiments.compare_methods --config=configs/shapes_cps_8_2.py --workdir=runs/compare

Of a seed, all methods share the base stage, which is the same for all of them; joint training sees
all classes for as many steps as all stages together. Every run is an ordinary run of
`simcis_jax.main` in a folder of its own, so an interrupted comparison goes on where it stopped.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict

from simcis_jax import main

SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds.')
METHODS = flags.DEFINE_list(
    'methods', ['simcis', 'pseudo_label', 'finetune', 'joint'], 'simcis must be the first.'
)
COLUMNS = ('base, stage 1', 'base', 'novel', 'all', 'kept %', 'avg')


def config_of(method: str, config: ConfigDict, base_run: Path, num_classes: int) -> ConfigDict:
    """The config of one method; all but the first start after the base stage of `base_run`."""
    config = copy.deepcopy(config)
    if method == 'joint':
        later = (num_classes - config.protocol.base) * config.training.steps_per_class
        config.training.base_steps += later
        config.protocol.base = num_classes
        return config
    config.method.name = method
    if method != METHODS.value[0]:
        config.training.init_from = str(base_run / 'stage_1')
    return config


def scores(results: dict, base: set[str]) -> dict[str, float]:
    """PQ or mIoU of one run after its last stage, by the base classes of the protocol."""
    first, last = results['stages'][0], results['stages'][-1]
    metric, of_class = ('pq', 'pq') if 'pq' in last else ('miou', 'iou')

    def mean(report, is_base):
        classes = report['per_class'].items()
        values = [scores[of_class] for name, scores in classes if (name in base) == is_base]
        return float(np.mean([v for v in values if v is not None]))

    before, after = mean(first, True), mean(last, True)
    return {
        'base, stage 1': before,
        'base': after,
        'novel': mean(last, False),
        'all': last[metric]['all'],
        'kept %': 100 * after / before if len(results['stages']) > 1 else float('nan'),
        'avg': results['average'][metric],
    }


def format_scores(table: dict[str, list[dict[str, float]]]) -> str:
    """A row a method: mean and, over several seeds, standard deviation of every column."""
    lines = [f'{"method":14}' + ''.join(f'{column:>16}' for column in COLUMNS)]
    for method, runs in table.items():
        cells = []
        for column in COLUMNS:
            values = np.array([run[column] for run in runs])
            spread = f' ± {values.std(ddof=1):.1f}' if len(values) > 1 else ''
            cells.append('-' if np.isnan(values).any() else f'{values.mean():.1f}{spread}')
        lines.append(f'{method:14}' + ''.join(f'{cell:>16}' for cell in cells))
    return '\n'.join(lines)


def compare(argv: list[str]) -> None:
    """Runs what is missing and prints the table."""
    del argv
    logging.set_verbosity(logging.WARNING)
    out, table = Path(main.WORKDIR.value), {}
    for seed in SEEDS.value:
        base_run = out / f'{METHODS.value[0]}_seed{seed}'
        base, num_classes = set(), 0
        for method in METHODS.value:
            print(f'\n== {method}, seed {seed}', flush=True)
            config = config_of(method, main.CONFIG.value, base_run, num_classes)
            config.training.seed = int(seed)
            results = main.run(config, str(out / f'{method}_seed{seed}'))
            if not base:
                base = set(results['stages'][0]['per_class'])
                num_classes = len(results['stages'][-1]['per_class'])
            table.setdefault(method, []).append(scores(results, base))
            (out / 'comparison.json').write_text(json.dumps(table, indent=2))
    seeds = ', '.join(SEEDS.value)
    text = f'PQ (semantic runs: mIoU) after the last stage, seeds {seeds}\n{format_scores(table)}\n'
    (out / 'comparison.txt').write_text(text)
    print(f'\n{text}')


if __name__ == '__main__':
    app.run(compare, flags_parser=main.parse_flags)
