"""Imports point one way, and nothing heavy is imported at run time."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import simcis_jax

PACKAGE = Path(simcis_jax.__file__).parent
# A part may import itself, the parts named here, and packages of others.
ALLOWED = {
    'types': set(),
    'resize': set(),
    'progress': set(),
    'threads': set(),
    'model': {'types', 'resize'},
    'losses': {'types'},
    'continual': {'types', 'resize'},
    'methods': {'types', 'model', 'losses', 'continual'},
    'data': {'types', 'threads'},
    'evaluation': {'types', 'resize', 'continual', 'data'},
    'port': {'types', 'model'},
    'accumulation': set(),
    'allocator': set(),
    'compilation': set(),
    'optimizer': set(),
    'parallel': set(),
    'train_step': {
        'types',
        'accumulation',
        'parallel',
        'optimizer',
        'model',
        'losses',
        'methods',
    },  # fmt: skip
    'manifest': set(),
    'checkpointing': {'manifest', 'train_step'},
    'interruption': set(),
    'nonfinite': {'data'},
    'step_loop': {
        'types',
        'checkpointing',
        'data',
        'interruption',
        'nonfinite',
        'progress',
        'settings',
        'train_step',
        'workdir',
    },
    'settings': {'model', 'losses', 'continual', 'methods', 'optimizer'},
    'stage_data': {'types', 'continual', 'data', 'settings'},
    'replay': {'continual', 'data', 'progress', 'settings'},
    'workdir': {'evaluation'},
    'starting_point': {'checkpointing', 'continual', 'data', 'port', 'workdir'},
    'reporting': {'evaluation', 'continual', 'checkpointing', 'workdir', 'settings', 'progress'},
    'evaluator': {'types', 'parallel', 'data', 'evaluation', 'model', 'progress', 'settings'},
    'predictor': {
        'types',
        'parallel',
        'continual',
        'data',
        'model',
        'checkpointing',
        'settings',
        'workdir',
        'evaluator',
    },
    'prediction_folder': {'types', 'data', 'evaluation', 'predictor', 'workdir'},
}


def imported_parts(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {n.split('.')[1] for n in names if n.startswith('simcis_jax.')}


@pytest.mark.parametrize('part', sorted(ALLOWED))
def test_imports_point_one_way(part):
    file = PACKAGE / f'{part}.py'
    files = [file] if file.exists() else sorted((PACKAGE / part).rglob('*.py'))
    assert files
    for path in files:
        assert imported_parts(path) <= ALLOWED[part] | {part}, path


def test_only_checkpointing_imports_orbax():
    users = [p.name for p in PACKAGE.rglob('*.py') if 'orbax' in p.read_text()]
    assert users == ['checkpointing.py']


def test_the_command_imports_neither_torch_nor_tensorflow():
    code = 'import simcis_jax.main, sys; print({"torch", "tensorflow"} & set(sys.modules))'
    output = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == 'set()'
