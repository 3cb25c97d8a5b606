"""Remedies against forgetting after a short training.

    python -m experiments.remedies --data=shapes --workdir=runs/shapes --seeds=0,1,2
    python -m experiments.remedies --data=camvid --data_root=DIR --workdir=runs/camvid

Without a pseudo-label, segments of a past class are trained as background. The rows accept less
confident pseudo-labels, merge queries that share the probability of one segment, or train what is
in doubt as nothing at all. Without the stop gradient in a short first stage, the teacher is surer.
"""

from __future__ import annotations

from experiments import command
from experiments.components import LEARNED_QUERIES
from experiments.experiment import Experiment, Setting
from experiments.sweep import Variant

LENIENT = {'method.simcis.pseudo_label_score': 0.15, 'method.simcis.pseudo_label_overlap': 0.5}
MERGED = {'method.simcis.pseudo_label_duplicates': 0.5, 'evaluation.duplicate_overlap': 0.5}
DOUBT = {'method.simcis.doubt_score': 0.05}
HALF_BELIEVED = LENIENT | MERGED | DOUBT
LATE_STOP = {'training.stop_gradient_from_stage': 2}
VARIANTS = (
    Variant('SimCIS'),
    Variant('lower thresholds', LENIENT),
    Variant('merged in the evaluation only', {'evaluation.duplicate_overlap': 0.5}),
    Variant('merged duplicates', MERGED, name='merged'),
    Variant('merged duplicates, doubt', MERGED | DOUBT, name='merged_doubt'),
    Variant('merged duplicates, lower thresholds, doubt', HALF_BELIEVED, name='all_remedies'),
    Variant(
        'the three, no stop gradient',
        HALF_BELIEVED | {'model.stop_gradient': False},
        name='all_remedies_no_stop_gradient',
    ),
    Variant('stop gradient from stage 2', LATE_STOP),
    Variant('all together', HALF_BELIEVED | LATE_STOP, name='all_four_remedies'),
    Variant('learned queries', LEARNED_QUERIES),
    Variant(
        'learned queries, the three',
        LEARNED_QUERIES
        | {k.replace('.simcis.', '.pseudo_label.'): v for k, v in HALF_BELIEVED.items()},
        name='learned_queries_all_remedies',
    ),
)

EXPERIMENT = Experiment(
    name='remedies',
    title='Remedies against forgetting, in percent after the last stage',
    settings={
        'shapes': [Setting('shapes_cps_published_8_1'), Setting('shapes_cps_published_8_2')],
        'camvid': [Setting('camvid_cps_published_6_1'), Setting('camvid_cps_published_6_5')],
        'ade20k': [Setting('ade_cps_100_5'), Setting('ade_cps_100_10')],
        'coco': [Setting('coco_cps_83_5')],
    },
    variants=VARIANTS,
)

if __name__ == '__main__':
    command.main(EXPERIMENT)
