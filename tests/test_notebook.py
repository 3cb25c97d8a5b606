"""The notebook runs on a CPU in miniature, and the commands in its text exist."""

import importlib
import re
import sys
from pathlib import Path

import cv2
import jax
import nbclient
import nbformat
import numpy as np
import pytest
from shrunken_params import shrunken_params
from tiny import tiny_config

from simcis_jax.configs import shapes_cps_8_2
from simcis_jax.port import torch_files, torch_weights
from simcis_jax.settings.groups import flat
from simcis_jax.settings.keys import GROUPS
from simcis_jax.training.checkpointing import StageCheckpoints

ROOT = Path(__file__).parent.parent
PATH = ROOT / 'experiments' / 'colab_tpu.ipynb'


def read_notebook(last=None, **parameters):
    """The notebook up to the cell `last`, with other values in its parameter cell."""
    notebook = nbformat.read(PATH, as_version=4)
    if last:
        notebook.cells = notebook.cells[: [cell.id for cell in notebook.cells].index(last) + 1]
    if parameters:
        (cell,) = [c for c in notebook.cells if 'parameters' in c.metadata.get('tags', [])]
        assert set(parameters) <= set(re.findall(r'^(\w+) = ', cell.source, re.MULTILINE))
        cell.source = '\n'.join(f'{name} = {value!r}' for name, value in parameters.items())
    return notebook


def tiny_changes():
    """Values that turn the built-in config into the tiny one, by dotted key."""
    config, tiny = (
        flat(values.to_dict(), GROUPS) for values in (shapes_cps_8_2.get_config(), tiny_config())
    )
    return {key: value for key, value in tiny.items() if config[key] != value}


@pytest.fixture
def make_client(monkeypatch, tmp_path):
    """Makes a client that runs a notebook in `tmp_path` on CPU, with the compilation cache."""
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('PATH', str(Path(sys.executable).parent), prepend=':')
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')

    def make(notebook):
        resources = {'metadata': {'path': str(tmp_path)}}
        return nbclient.NotebookClient(notebook, timeout=600, resources=resources)

    return make


def outputs(notebook, cell_id):
    (cell,) = [cell for cell in notebook.cells if cell.id == cell_id]
    return cell.outputs


def printed(notebook, cell_id):
    return ''.join(output.get('text', '') for output in outputs(notebook, cell_id))


def num_pictures(notebook, cell_id):
    return sum('image/png' in output.get('data', {}) for output in outputs(notebook, cell_id))


def test_the_file_is_a_valid_notebook_without_outputs():
    notebook = read_notebook()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            assert not cell.outputs and cell.execution_count is None


def test_its_commands_and_arguments_exist(capsys):
    text = '\n'.join(cell.source for cell in read_notebook().cells)
    commands = re.findall(r'python -m (simcis_jax\.\w+)((?: [^\n`]+)?)', text)
    assert {module for module, _ in commands} == {
        f'simcis_jax.{name}' for name in ('prepare', 'convert', 'predict')
    }
    for module, arguments in commands:
        words = arguments.split()
        subcommand = [word for word in words[:1] if not word.startswith('--')]
        with pytest.raises(SystemExit, match='^0$'):
            importlib.import_module(module).main([*subcommand, '--help'])
        known = re.findall(r'--\w+', capsys.readouterr().out)
        assert set(re.findall(r' (--\w+)', arguments)) <= set(known), (module, arguments)


@pytest.mark.skipif(not (ROOT / '.git').exists(), reason='there is no repository to clone')
@pytest.mark.slow
def test_the_package_is_cloned_and_installed_where_it_is_missing(
    make_client, tmp_path, monkeypatch
):
    monkeypatch.delenv('PYTHONPATH')
    monkeypatch.setenv('PIP_NO_INDEX', '1')  # All requirements are installed already.
    notebook = read_notebook('install', EXPECTED='cpu', REPOSITORY=str(ROOT))
    source = 'import simcis_jax.configs.common; print(simcis_jax.__file__)'
    notebook.cells.append(nbformat.v4.new_code_cell(source, id='imported'))
    make_client(notebook).execute()
    package = tmp_path / 'repository' / 'simcis_jax' / '__init__.py'
    assert printed(notebook, 'imported').strip() == str(package)
    assert 'ERROR' not in printed(notebook, 'install')


@pytest.mark.slow
def test_a_fallback_to_the_cpu_stops_the_notebook(make_client):
    notebook = read_notebook('device', EXPECTED='tpu')
    with pytest.raises(nbclient.exceptions.CellExecutionError) as stopped:
        make_client(notebook).execute()
    assert stopped.value.ename == 'RuntimeError'
    assert "JAX runs on 'cpu', but EXPECTED is 'tpu'" in stopped.value.evalue


@pytest.mark.slow
def test_the_notebook_runs_completely(make_client, tmp_path):
    folder, shapes = tmp_path / 'drive', tmp_path / 'runs' / 'shapes_cps_8_2'
    (folder / 'pictures').mkdir(parents=True)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    cv2.imwrite(str(folder / 'pictures' / 'noise.jpg'), picture)
    params = shrunken_params(7, 'resnet50', 4)
    with StageCheckpoints(folder / 'stage_6' / 'checkpoints') as checkpoints:
        checkpoints.save_weights(0, params)
    notebook = read_notebook(
        EXPECTED='cpu',
        FOLDER=str(folder),
        SHAPES_CHANGES=tiny_changes(),
        ADE_CHANGES={},
        TO_CONVERT=str(folder / 'stage_6'),
        TO_PREDICT=str(shapes / 'stage_3'),
    )
    make_client(notebook).execute()
    assert re.search(r'^avg', printed(notebook, 'shapes-table'), re.MULTILINE)
    assert num_pictures(notebook, 'shapes-picture') == 1
    assert 'nothing to prepare' in printed(notebook, 'ade-prepare')
    assert 'no run' in printed(notebook, 'ade')
    assert 'stem.conv1.weight' in printed(notebook, 'convert')
    converted = torch_files.read(tmp_path / 'model.pth', lambda file: file['model'])
    assert converted.keys() == torch_weights.to_torch(params).keys()
    assert num_pictures(notebook, 'predict') == 1
    assert not (tmp_path / 'repository').exists()  # Nothing was installed.
