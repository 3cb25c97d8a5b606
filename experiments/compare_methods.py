"""Tables 1, 2, 3 and 9: all continual methods and joint training, in every setting.

    python -m experiments.compare_methods --data=ade20k --data_root=DATA --workdir=runs/ade20k
    python -m experiments.compare_methods --data=coco --data_root=DATA --workdir=runs/coco
    python -m experiments.compare_methods --data=shapes --workdir=runs/shapes
    python -m experiments.compare_methods --config=FILE --config.data.root=DIR --workdir=runs/mine

For each setting and seed, methods with the same network and first stage share it. Methods of the
original Mask2Former have their own configs: MiB of ade_cps_100_10 is ade_cps_plain_100_10. Joint
training sees all classes at once, for as many steps as all stages together.
`--settings=ade_cps_100_10` runs one setting, `--variants=SimCIS,joint` some of the methods.

Besides the scores, a table says what a later stage costs, and a figure shows the scores over the
stages.
"""

from __future__ import annotations

from experiments import command, stage_costs
from experiments.experiment import Experiment, Setting
from experiments.sweep import Variant

VARIANTS = (
    Variant('fine-tuning', {'method.name': 'finetune'}),
    Variant('pseudo-labels', {'method.name': 'pseudo_label'}),
    Variant('FuTCR', {'method.name': 'futcr'}),
    Variant('SimCIS'),
    Variant('MiB', {'method.name': 'mib'}, families=('plain',)),
    Variant('PLOP', {'method.name': 'plop'}, families=('plain',)),
    Variant('CoMFormer', {'method.name': 'comformer'}, families=('plain',)),
    Variant(
        'BalConpas',
        {'method.name': 'balconpas', 'protocol.replay_images': 0},
        families=('balconpas', 'plain'),
    ),
    Variant('BalConpas with replay', families=('balconpas',)),
    Variant('ECLIPSE', {'method.name': 'eclipse'}, families=('eclipse', 'plain')),
    Variant('joint', joint=True),
)

EXPERIMENT = Experiment(
    name='compare_methods',
    title='Continual methods, in percent after the last stage',
    settings={
        'shapes': [Setting('shapes_cps_published_8_2'), Setting('shapes_cps_published_8_1')],
        'camvid': [
            Setting('camvid_cps_published_6_5'),
            Setting('camvid_cps_published_6_1'),
            Setting('camvid_css_6_5'),
            Setting('camvid_css_6_1'),
        ],
        'ade20k': [
            *(Setting(f'ade_cps_100_{b}', '1', f'100-{b}') for b in (5, 10, 50)),
            *(Setting(f'ade_cps_50_{b}', '2', f'50-{b}') for b in (10, 20, 50)),
            *(Setting(f'ade_css_100_{b}', '3', f'100-{b}') for b in (5, 10, 50)),
        ],
        'coco': [Setting('coco_cps_83_5', '9', '83-5')],
    },
    variants=VARIANTS,
    analyze=stage_costs.analyze,
)

if __name__ == '__main__':
    command.main(EXPERIMENT)
