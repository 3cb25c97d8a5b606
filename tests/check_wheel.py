"""Builds the wheel and uses it in an empty folder, as someone without a checkout does.

    python -m tests.check_wheel

Its environment holds nothing but the wheel; the requirements are those of the running Python.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import cv2
import numpy as np

from tests.xla_flags import FAST_COMPILATION

ROOT = Path(__file__).parent.parent
# Everything that the wheel is built from.
SOURCES = ('pyproject.toml', 'README.md', 'LICENSE', 'requirements.txt', 'configs', 'simcis_jax')
# With the network of tests/tiny.py, whose compiled programs are used again where a cache is shared.
FEW_STEPS = (
    '--config.protocol.base=12',  # One stage.
    '--config.training.base_steps=4',
    '--config.training.batch_size=4',
    '--config.model.num_queries=12',
    '--config.model.hidden_dim=32',
    '--config.model.encoder_layers=1',
    '--config.model.decoder_layers=2',
    '--config.loss.num_points=32',
    '--config.data.max_segments=10',
    '--config.data.num_train_images=20',
    '--config.data.num_val_images=4',
    '--config.evaluation.batch_size=4',
)
OWN_CONFIG = """
from simcis_jax.configs import shapes_cps_8_2

get_config = shapes_cps_8_2.get_config
"""


def build(folder: Path) -> Path:
    """Builds the wheel from a copy of the sources, free of earlier build files."""
    copy = folder / 'source'
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns('__pycache__')
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, copy)
    pip = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', f'--wheel-dir={folder}']
    subprocess.run([*pip, copy], check=True)
    (wheel,) = folder.glob('*.whl')
    return wheel


def install(wheel: Path, environment: Path) -> Path:
    """Installs the wheel in a new environment; returns its Python."""
    subprocess.run([sys.executable, '-m', 'venv', environment], check=True)
    (packages,) = environment.glob('lib/python3*/site-packages')
    before = {path.name for path in packages.iterdir()}
    python = environment / 'bin' / 'python'
    pip = [python, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', wheel]
    subprocess.run(pip, check=True)
    landed = {path.name for path in packages.iterdir()} - before
    name, version, *_ = wheel.name.split('-')
    assert landed == {name, f'{name}-{version}.dist-info'}, landed
    (packages / 'requirements.pth').write_text(sysconfig.get_path('purelib') + '\n', 'utf-8')
    return python


def use(python: Path, folder: Path) -> None:
    """Trains a few steps in `folder`, also with a config file in it, and segments one image."""
    variables = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    variables['XLA_FLAGS'] = FAST_COMPILATION

    def run(*arguments: str) -> str:
        command = [python, '-m', *arguments]
        print('+ python -m', *arguments, flush=True)
        return subprocess.run(
            command, cwd=folder, env=variables, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    found = subprocess.run(
        [python, '-c', 'import simcis_jax; print(simcis_jax.__file__)'],
        cwd=folder, env=variables, check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip
    assert Path(found.strip()).is_relative_to(python.parent.parent), found
    print(run('simcis_jax.main', '--config=shapes_cps_8_2', '--workdir=run', *FEW_STEPS))
    (folder / 'mine.py').write_text(OWN_CONFIG, 'utf-8')
    run('simcis_jax.main', '--config=mine.py', '--workdir=run', *FEW_STEPS)  # Finished already.
    cv2.imwrite(str(folder / 'photo.png'), np.full((64, 80, 3), 90, np.uint8))
    run('simcis_jax.predict', '--checkpoint=run/stage_1', '--images=photo.png', '--out=predicted')
    assert (folder / 'predicted' / 'overlay' / 'photo.png').is_file()


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        (folder / 'empty').mkdir()
        use(install(build(folder), folder / 'environment'), folder / 'empty')
    print('the wheel works in an empty folder')


if __name__ == '__main__':
    main()
