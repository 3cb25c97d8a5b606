"""Imports between folders point one way, and PyTorch and TensorFlow are never imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import simcis_jax

PACKAGE = Path(simcis_jax.__file__).parent
# For each folder or module of the package, from the lowest layer up, which others it may import.
ALLOWED = {
    'errors': set(),
    'settings/declare': {'errors'},  # The rest of settings/ collects what the packages declare.
    'precision': set(),
    'loops': set(),
    'types': {'errors', 'precision'},
    'runtime': {'errors'},
    'model': {'errors', 'settings/declare', 'loops', 'precision', 'types'},
    'losses': {'errors', 'settings/declare', 'precision', 'types', 'model'},
    'continual': {'errors', 'loops', 'types', 'model'},
    'port': {'errors', 'types', 'runtime', 'model'},
    'methods': {
        'errors', 'settings/declare', 'precision', 'types', 'model', 'losses', 'continual', 'port',
    },
    'settings': {
        'errors', 'settings/declare', 'model', 'losses', 'continual', 'methods',
    },
    'data': {'errors', 'types', 'runtime'},
    'evaluation': {
        'errors', 'loops', 'precision', 'types', 'runtime', 'model', 'continual', 'methods',
        'settings', 'data',
    },
    'training': {
        'errors', 'types', 'runtime', 'model', 'losses', 'continual', 'methods', 'settings', 'data',
        'port', 'evaluation',
    },
    'prediction': {
        'errors', 'types', 'runtime', 'model', 'continual', 'methods', 'settings', 'data', 'port',
        'evaluation', 'training',
    },
    'reporting': {
        'errors', 'types', 'runtime', 'methods', 'settings', 'data', 'evaluation', 'training',
    },
}  # fmt: skip


def part_of(module: str) -> str:
    """The key of ALLOWED that a module or name of the package, 'a.b.c', belongs to."""
    folder, *inner = module.split('.')
    file = '/'.join([folder, *inner[:1]])
    return file if file in ALLOWED else folder


def imported_parts(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    prefix = 'simcis_jax.'
    return {part_of(name.removeprefix(prefix)) for name in names if name.startswith(prefix)}


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
