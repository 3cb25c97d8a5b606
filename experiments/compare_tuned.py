"""All continual methods on the built-in shapes, as published and with tuned hyper-parameters.

    python -m experiments.compare_tuned --data=shapes --workdir=runs/shapes --seeds=0,1,2

`experiments.tuning` chose the hyper-parameters, with three trials of every method and without
the validation images. In the --workdir of `compare_methods`, its runs are reused.
"""

from __future__ import annotations

from collections.abc import Mapping

from experiments import command, compare_methods, tuning
from experiments.experiment import Experiment, Setting
from experiments.sweep import Variant

# Row of `compare_methods` -> the best of its trials; other rows are best as published.
CHOSEN: Mapping[str, str] = {
    'fine-tuning': 'larger',
    'pseudo-labels': 'smaller',
    'FuTCR': 'larger',
    'MiB': 'larger',
    'CoMFormer': 'smaller',
    'BalConpas': 'larger',
    'ECLIPSE': 'smaller',
}


def make_variants() -> list[Variant]:
    """Every row of `compare_methods`, followed by its chosen trial if that is another one."""
    variants = []
    for method in compare_methods.VARIANTS:
        variants.append(method)
        row = method.label.removesuffix(' with replay')
        if row in CHOSEN:
            changes = tuning.trials(row)[CHOSEN[row]]
            variants.append(
                Variant(
                    f'{method.label}, tuned',
                    {**method.changes, **changes},
                    name=f'tuned_{method.label}'.replace(' ', '_'),
                    families=method.families,
                )
            )
    return variants


EXPERIMENT = Experiment(
    name='compare_tuned',
    title='Continual methods, as published and tuned, in percent after the last stage',
    settings={'shapes': [Setting('shapes_cps_published_8_1')]},
    variants=make_variants(),
)

if __name__ == '__main__':
    command.main(EXPERIMENT)
