"""`simcis_jax.export`, on one tiny model with random weights."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from random_run import random_run

from simcis_jax import export, predict
from simcis_jax.data import Shapes
from simcis_jax.data.augment import resize_image
from simcis_jax.data.category_list import read_categories
from simcis_jax.prediction import exported_model

PAGE = Path(__file__).parent.parent / 'docs' / 'export.md'
# The code of docs/export.md stands in between, in a process that cannot import the package.
BEFORE = """
import sys
sys.modules['simcis_jax'] = sys.modules['flax'] = None
"""
AFTER = """
results = {}
for name, photo in np.load('photos.npz').items():
    for key, value in zip(('segment_map', 'names', 'scores'), segment(photo)):
        results[name + '/' + key] = np.asarray(value)
np.savez('results.npz', **results)
"""


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The work directory of a run whose stage 2 has random weights."""
    return random_run(tmp_path_factory.mktemp('runs') / 'random')[0]


@pytest.fixture(scope='module')
def model(run):
    return export.load_model(run / 'stage_2')


@pytest.fixture(scope='module')
def exported(model, tmp_path_factory):
    """A file for three platforms, and what the command says about it."""
    out = tmp_path_factory.mktemp('exported') / 'new' / 'model.stablehlo'
    return out, export.export_model(model, out, height=64, width=96, batch_size=2)


@pytest.mark.slow
def test_without_the_package_results_are_those_of_prediction(run, exported):
    folder = exported[0].parent
    photos = {
        f'{height}x{width}': resize_image(Shapes('val', size=64)[index].image, height, width)
        for index, (height, width) in enumerate([(64, 96), (50, 80), (40, 70)])
    }
    np.savez(folder / 'photos.npz', **photos)
    (code,) = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL)
    command = [sys.executable, '-P', '-c', BEFORE + code + AFTER]
    subprocess.run(command, cwd=folder, check=True)
    results, num_segments = np.load(folder / 'results.npz'), 0
    for name, photo in photos.items():
        height, width = photo.shape[:2]
        # These sides leave the photo at its size, so that it is padded to 64 x 96.
        predictor = predict.load(run / 'stage_2', batch_size=2, short_side=height, max_side=width)
        expected = predictor(photo)
        num_segments += len(expected.labels)
        np.testing.assert_array_equal(results[f'{name}/segment_map'], expected.segment_map)
        assert tuple(results[f'{name}/names']) == expected.names
        np.testing.assert_allclose(results[f'{name}/scores'], expected.scores, rtol=1e-5)
    assert num_segments > 10


@pytest.mark.slow
def test_programs_of_all_platforms_share_the_weights(model, exported):
    out, printed = exported
    program = jax.export.deserialize(bytearray(out.read_bytes()))
    assert program.platforms == ('cpu', 'cuda', 'tpu')
    assert 'tpu_custom_call' in program.mlir_module()
    weights = sum(x.nbytes for x in jax.tree.leaves(model.params))
    assert weights < out.stat().st_size < 1.9 * weights
    assert 'for cpu, cuda, tpu; 2 x 64 x 96 pixels; loaded again, on cpu, 100.00%' in printed


@pytest.mark.slow
def test_the_classes_are_written_beside_the_file(model, exported):
    out = exported[0]
    assert read_categories(f'{out}.json') == model.categories
    assert {path.suffix for path in out.parent.glob('model*')} == {'.stablehlo', '.json'}


@pytest.mark.slow
def test_a_file_that_differs_is_not_written(model, exported, tmp_path, monkeypatch):
    program = jax.export.deserialize(bytearray(exported[0].read_bytes()))
    monkeypatch.setattr(exported_model, 'export_program', lambda *_: program)
    other = model._replace(params=jax.tree.map(lambda x: x[::-1], model.params))
    with pytest.raises(RuntimeError, match='the exported model differs from the model: on cpu'):
        export.export_model(other, tmp_path / 'model.stablehlo')
    assert not list(tmp_path.iterdir())


def test_the_command_exports_for_another_platform_at_the_size_of_evaluation(run, tmp_path, capsys):
    out = tmp_path / 'model.stablehlo'
    export.main([f'--checkpoint={run}/stage_2', f'--out={out}', '--platforms=rocm,tpu'])
    printed = capsys.readouterr().out
    assert '1 x 64 x 64 pixels; loaded again, and not compared, because this process' in printed
    program = jax.export.deserialize(bytearray(out.read_bytes()))
    assert program.platforms == ('rocm', 'tpu')
    assert [x.shape for x in program.in_avals] == [(1, 64, 64, 3), (1, 2)]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            ['--platforms=cpu,gpu'],
            "--platforms: 'gpu' is unknown; give one or several of cpu",
        ),
        (['--platforms='], "--platforms: '' is unknown"),
        (['--height=100'], '--height=100 must be a multiple of'),
        (['--width=0'], '--width=0 must be a multiple of'),
        (['--batch_size=0'], '--batch_size=0 must be at least 1'),
        (['--out={run}'], 'is a folder, but a file is written; add a name'),
        (['--out={run}/config.json/model'], 'config.json/model cannot be written'),
        (['--checkpoint=nowhere/stage_1'], 'must be a folder stage_N'),
        (['--overlap_threshold=2'], 'evaluation.overlap_threshold=2.0 must be a finite number'),
        (['--config.data.size=32'], 'changes a config, so it needs --config=NAME'),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, capsys, arguments, message):
    command = [f'--checkpoint={run}/stage_2', f'--out={tmp_path}/model.stablehlo']
    with pytest.raises(SystemExit):
        export.main([*command, *(text.replace('{run}', str(run)) for text in arguments)])
    error = capsys.readouterr().err.splitlines()[-1]
    assert 'error: ' in error and message in error
    assert not list(tmp_path.iterdir())
