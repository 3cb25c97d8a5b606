"""Table 5: images or virtual queries of the past, and the bytes that each of them takes.

    python -m experiments.replay --data=shapes --workdir=runs/shapes
    python -m experiments.replay --data=ade20k --data_root=DATA --workdir=runs/ade20k

All rows have QPA and CSL and share the first stage: a smaller query bank is the end of a larger
one. The megabytes are those of the image files and labels kept, or of the queries stored, for the
last stage; the paper stores queries in 16 bits, the bank here has 32.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments import command
from experiments.experiment import Experiment, Setting
from experiments.sweep import Variant


def variants(num_classes: int) -> Sequence[Variant]:
    """The rows, the paper's counts; the number of classes does not matter."""
    del num_classes
    no_queries = {'method.num_virtual_queries': 0}
    return (
        Variant('0 virtual queries a class', no_queries),
        *(
            Variant(f'{count} virtual queries a class', {'method.bank_size': count})
            for count in (20, 40, 80, 160)
        ),
    )


EXPERIMENT = Experiment(
    name='replay',
    title='Replay of images or of virtual queries, in percent after the last stage',
    settings={
        'shapes': [Setting('shapes_cps_8_1', '5', '100-5')],
        'camvid': [Setting('camvid_cps_6_1', '5', '100-5')],
        'ade20k': [Setting('ade_cps_100_5', '5', '100-5')],
        'coco': [Setting('coco_cps_83_5', '5', '100-5')],
    },
    variants=variants,
)

if __name__ == '__main__':
    command.main(EXPERIMENT)
