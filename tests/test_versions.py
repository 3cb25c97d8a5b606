"""The pure functions of tests/versions.py, and the versions that the project declares."""

import re
import tomllib
from pathlib import Path

import pytest
import versions

import simcis_jax

ROOT = Path(__file__).parent.parent
PYPROJECT = (ROOT / 'pyproject.toml').read_text('utf-8')


def listed(file):
    """The requirements in a file, without included files and comments."""
    lines = (line.split('#')[0].strip() for line in (ROOT / file).read_text('utf-8').splitlines())
    return {line for line in lines if line and not line.startswith('-r')}


def test_tested_versions_are_the_declared_ones():
    assert versions.supported_pythons(PYPROJECT) == ['3.11', '3.12', '3.13']
    requirements = (ROOT / 'requirements.txt').read_text('utf-8')
    assert versions.oldest_jax(requirements) == 'jax==0.10'
    assert versions.oldest_jax('jaxtyping>=0.3\njax>=0.9.1,<2\n') == 'jax==0.9.1'


def test_the_newest_interpreter_of_each_python_is_used():
    found = {'/a': (3, 11, 9), '/b': (3, 11, 10), '/c': (3, 13, 0)}
    assert versions.newest_of_each(found) == {'3.11': '/b', '3.13': '/c'}


@pytest.mark.parametrize(
    ('output', 'counts'),
    [
        ('== 3 passed, 1 skipped in 2.31s ==\n', '3 passed, 1 skipped'),
        ('1 failed, 2 passed, 1 warning in 60.00s (0:01:00)\n', '1 failed, 2 passed, 1 warning'),
        ('a test says 5 passed in 1.00s\n1 error in 0.10s\n', '1 error'),
        ('ModuleNotFoundError: no pytest\n', ''),
    ],
)
def test_counts_are_read_from_the_last_line(output, counts):
    assert versions.summary(output) == counts


def test_the_table_is_aligned():
    rows = [['3.11', '0.10.0', '0.12.8', '3 passed', '1.5'], ['3.9', '', '', 'missing', '']]
    assert versions.format_table(rows).splitlines() == [
        'Python  JAX     flax    outcome   minutes',
        '3.11    0.10.0  0.12.8  3 passed  1.5',
        '3.9                     missing',
    ]


@pytest.mark.parametrize(
    ('extra', 'files'),
    [
        ('dev', ['requirements-dev.txt', 'experiments/requirements.txt']),
        ('docs', ['requirements-docs.txt']),
    ],
)
def test_an_extra_equals_its_requirement_files(extra, files):
    extras = tomllib.loads(PYPROJECT)['project']['optional-dependencies']
    assert set(extras[extra]) == set.union(*map(listed, files))


def test_the_package_has_a_version():
    assert re.fullmatch(r'\d+\.\d+\.\d+', simcis_jax.__version__)
