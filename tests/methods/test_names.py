"""Outside of methods/, the package names no method and no field of a method."""

import ast
import re
from pathlib import Path

import pytest

import simcis_jax
from simcis_jax.methods import METHODS
from simcis_jax.settings.declare import declared

PACKAGE = Path(simcis_jax.__file__).parent
# What methods are made of knows them even less: it cannot import them (tests/test_imports.py).
BELOW = {'methods', 'continual', 'losses'}
FILES = [
    path
    for path in sorted(PACKAGE.rglob('*.py'))
    if path.relative_to(PACKAGE).parts[0] not in BELOW | {'configs'}
]
FIELDS = {field for method in METHODS.values() for field in declared(method)}
CLASSES = {method.__name__ for method in METHODS.values()} - {'Method', 'MiB'}  # MiB is a unit too.
NAMES = set(METHODS) | CLASSES | FIELDS


def words(tree):
    """The identifiers and the words in texts of a module, without its docstrings."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node not in docstrings:
            if isinstance(node.value, str):
                yield from re.findall(r'\w+', node.value)
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or '').split('.')
            yield from (alias.name for alias in node.names)
        else:
            yield from (
                getattr(node, kind)
                for kind in ('id', 'attr', 'arg')
                if isinstance(getattr(node, kind, None), str)
            )


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_file_names_no_method(path):
    assert NAMES & set(words(ast.parse(path.read_text()))) == set()


def test_names_are_found_where_they_are():
    text = "def f(x):\n    '''csl_weight'''\n    return x.bank_size, f'--method.{x}=futcr'\n"
    assert NAMES & set(words(ast.parse(text))) == {'bank_size', 'futcr'}
    assert len(FILES) > 80 and {'simcis', 'SimCIS', 'csl_weight', 'contrast_weight'} <= NAMES
