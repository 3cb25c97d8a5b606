"""ADE20K from the download to the results table, by the commands of the README, in miniature.

The downloads have ADE20K's layout and its 150 classes. The configs are the published ones, with a
smaller network, fewer steps and two stages.
"""

import json
import os
import pathlib
import subprocess
import sys

import cv2
import jax
import pytest
from data.ade20k_tree import add_real_annotations, make_tree, to_archives

from simcis_jax.data.ade20k import CATEGORIES, Ade20k

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parent.parent
SMALL = {
    'data': {'size': 64, 'max_segments': 10},
    'protocol': {'base': 140},
    'model': {
        'backbone': 'small_stride4',
        'num_queries': 12,
        'hidden_dim': 32,
        'num_heads': 4,
        'encoder_layers': 1,
        'encoder_feedforward': 64,
        'decoder_layers': 2,
        'decoder_feedforward': 64,
    },
    'loss': {'num_points': 32},
    'training': {'init_backbone': '', 'batch_size': 2, 'base_steps': 4, 'steps_per_class': 1},
    'evaluation': {'short_side': 64, 'max_side': 128, 'batch_size': 2},
}
TRAINED = [0, 2, 12, 20, 66, 141, 142, 148]  # Things and stuff; the last three come in stage 2.


def command(module, *arguments, **options):
    """Runs a command as a user does, with the compilation cache; returns its output."""
    arguments = [*arguments, *(f'--{key}={value}' for key, value in options.items())]
    done = subprocess.run(
        [sys.executable, '-m', f'simcis_jax.{module}', *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def prepare_and_run(kind, config, folder):
    """The reports of both stages, and the output of the run."""
    command('prepare', kind, '--allow_partial', source=folder, data_dir=folder / 'data')
    values = {f'config.{g}.{key}': v for g, keys in SMALL.items() for key, v in keys.items()}
    values |= {'config.data.root': folder / f'data/{kind}', 'workdir': folder / 'run'}
    output = command('main', config=f'configs/{config}.py', **values)
    assert (folder / 'run/results.txt').read_text().strip() in output
    for stage in (1, 2):
        picture = cv2.imread(str(folder / f'run/stage_{stage}/predictions.png'))
        assert picture is not None and picture.std() > 10
    stages = json.loads((folder / 'run/results.json').read_text())['stages']
    assert [len(report['per_class']) for report in stages] == [140, 150]
    return stages, output


def present_things_and_stuff(folder, kind):
    """Names of the thing classes and of the stuff classes in the validation images."""
    labels = {label for example in Ade20k(folder, 'val', kind) for label in example.labels.tolist()}
    things = {CATEGORIES.names[label] for label in labels if CATEGORIES.is_thing[label]}
    return things, {CATEGORIES.names[label] for label in labels} - things


def test_panoptic_run_has_scores_only_for_classes_that_occur(tmp_path):
    make_tree(tmp_path, num_train=10, num_val=0, classes=TRAINED)
    make_tree(tmp_path, num_train=0, num_val=3, classes=[0, 2, 12, 20, 141])
    things, stuff = present_things_and_stuff(tmp_path, 'panoptic')
    to_archives(tmp_path)
    stages, output = prepare_and_run('ade20k_panoptic', 'ade_cps_100_10', tmp_path)
    assert 'stage 1 evaluation: 3 images, 2 network shapes, 2 output shapes' in output
    for report in stages:
        for name, scores in report['per_class'].items():
            # A predicted segment of a class without ground truth is a false positive, so PQ is 0.
            occurs = name in things | stuff or scores['fp'] > 0
            assert (scores['pq'] is not None) == occurs, name
            assert (scores['iou'] is not None) == (name in things | stuff), name
            assert (scores['ap'] is not None) == (name in things), name
    # A class without ground truth or prediction: PQ, SQ, RQ, counts of 0, IoU, AP.
    flag = next(row.split() for row in output.splitlines() if row.startswith('flag '))
    assert flag == ['flag', '-', '-', '-', '0', '0', '0', '-', '-', '-', '-']
    assert stages[0]['pq']['novel'] is None and stages[1]['pq']['novel'] is not None


def test_semantic_on_annotations_of_the_real_data_set(tmp_path):
    make_tree(tmp_path, num_train=10, num_val=0, classes=TRAINED)
    add_real_annotations(tmp_path)
    things, stuff = present_things_and_stuff(tmp_path, 'semantic')
    stages, output = prepare_and_run('ade20k_semantic', 'ade_css_100_10', tmp_path)
    for report in stages:
        for name, scores in report['per_class'].items():
            assert (scores['iou'] is not None) == (name in things | stuff), name
    assert stages[1]['miou']['all'] is not None
