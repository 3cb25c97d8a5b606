"""Table 8: stop gradient between the selected pixel features and the decoder.

python -m experiments.stop_gradient --data=shapes --workdir=runs/shapes
python -m experiments.stop_gradient --data=ade20k --data_root=DATA --workdir=runs/ade20k
"""

from __future__ import annotations

from experiments import command
from experiments.experiment import Experiment, Setting
from experiments.sweep import Variant

NO_STOP_GRADIENT = Variant('no stop gradient', {'model.stop_gradient': False})
VARIANTS = (NO_STOP_GRADIENT, Variant('stop gradient'))

EXPERIMENT = Experiment(
    name='stop_gradient',
    title='Stop gradient between the selected queries and the decoder, in percent',
    settings={
        'shapes': [Setting('shapes_cps_published_8_1', '8', '100-5')],
        'camvid': [Setting('camvid_cps_published_6_1', '8', '100-5')],
        'ade20k': [Setting('ade_cps_100_5', '8', '100-5')],
        'coco': [Setting('coco_cps_83_5', '8', '100-5')],
    },
    variants=VARIANTS,
)

if __name__ == '__main__':
    command.main(EXPERIMENT)
