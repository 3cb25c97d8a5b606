"""Table 4: component ablation of query pre-alignment, consistent selection and virtual queries.

    python -m experiments.components --data=shapes --workdir=runs/shapes
    python -m experiments.components --data=ade20k --data_root=DATA --workdir=runs/ade20k

The rows with selected queries share the first stage. Removing CSL also removes the distillation of
the decoder's output.
"""

from __future__ import annotations

from experiments import command
from experiments.experiment import Experiment, Setting
from experiments.sweep import Variant

LEARNED_QUERIES = {'model.queries': 'learned', 'method.name': 'pseudo_label'}
VARIANTS = (
    Variant('pseudo-labels, learned queries', LEARNED_QUERIES),
    Variant('+ QPA', {'method.name': 'pseudo_label'}),
    Variant('+ QPA + CSL', {'method.simcis.num_virtual_queries': 0}),
    Variant(
        '+ QPA + VQ', {'method.simcis.csl_weight': 0.0, 'method.simcis.decoder_kl_weight': 0.0}
    ),
    Variant('SimCIS'),
)

EXPERIMENT = Experiment(
    name='components',
    title='Components of SimCIS, in percent after the last stage',
    settings={
        'shapes': [Setting('shapes_cps_published_8_1', '4', '100-5')],
        'camvid': [
            Setting('camvid_cps_published_6_1', '4', '100-5'),
            Setting('camvid_css_6_1', '4', '100-5'),
        ],
        'ade20k': [
            Setting('ade_cps_100_5', '4', '100-5'),
            Setting('ade_css_100_5', '4', '100-5'),
        ],
        'coco': [Setting('coco_cps_83_5', '9', '83-5')],
    },
    variants=VARIANTS,
)
# The panoptic setting of each data set, for experiments that analyze the same runs.
PANOPTIC = {data: found[:1] for data, found in EXPERIMENT.settings.items()}

if __name__ == '__main__':
    command.main(EXPERIMENT)
