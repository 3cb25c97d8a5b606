"""Runs the tests on every Python found, with the oldest and the newest JAX allowed.

    python -m tests.versions
    python -m tests.versions --pythons=3.13 --jax=newest tests/model -x

Each combination has a fresh environment. Pythons are looked for in pyenv and on PATH; other
arguments are those of pytest. The status is 1 if anything fails or a Python is missing.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
COLUMNS = ('Python', 'JAX', 'flax', 'outcome', 'minutes')


def supported_pythons(pyproject: str) -> list[str]:
    """The Python versions that pyproject.toml declares, such as '3.11'."""
    classifiers = tomllib.loads(pyproject)['project']['classifiers']
    found = (re.fullmatch(r'Programming Language :: Python :: (3\.\d+)', c) for c in classifiers)
    return [match[1] for match in found if match]


def oldest_jax(requirements: str) -> str:
    """The requirement of the oldest JAX that requirements.txt allows, such as 'jax==0.10'."""
    oldest = re.search(r'^jax>=([\d.]+)', requirements, re.MULTILINE)[1]
    return f'jax=={oldest}'


def newest_of_each(versions: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """The newest program of each minor version: {'3.11': program}, given {program: version}."""
    ordered = sorted(versions, key=versions.get)
    return {'.'.join(map(str, versions[program][:2])): program for program in ordered}


def summary(output: str) -> str:
    """The counts of pytest, such as '12 passed, 1 skipped'; '' if it did not get that far."""
    lines = re.findall(r'(\d+ (?:passed|failed|skipped|error).*?) in [\d.]+s', output)
    return lines[-1] if lines else ''


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows under COLUMNS, aligned."""
    rows = [COLUMNS, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ('  '.join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return '\n'.join(lines)


def find_pythons(minors: Sequence[str]) -> dict[str, str]:
    """The interpreter of each minor version that is installed."""
    pyenv = Path(os.environ.get('PYENV_ROOT', Path.home() / '.pyenv'))
    programs = [str(path) for path in pyenv.glob('versions/3.*/bin/python')]
    programs += filter(None, (shutil.which(f'python{minor}') for minor in minors))
    versions = {}
    for program in programs:
        code = 'import sys, venv, ensurepip; print(*sys.version_info[:3])'
        done = subprocess.run([program, '-c', code], capture_output=True, text=True)
        if done.returncode == 0:
            versions[program] = tuple(map(int, done.stdout.split()))
    return {m: p for m, p in newest_of_each(versions).items() if m in minors}


def version_of(python: Path, package: str) -> str:
    code = f'import importlib.metadata as m; print(m.version({package!r}))'
    return subprocess.run([python, '-c', code], capture_output=True, text=True).stdout.strip()


def try_versions(
    program: str, pins: Sequence[str], arguments: Sequence[str]
) -> tuple[bool, list[str]]:
    """Runs the tests in a new environment; returns whether they pass, and a row of the table."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([program, '-m', 'venv', folder], check=True)
        python = Path(folder) / 'bin' / 'python'
        install = [python, '-m', 'pip', 'install', '--quiet', '-r', 'requirements-dev.txt', *pins]
        if subprocess.run(install, cwd=ROOT).returncode:
            outcome, passes = 'not installed', False
        else:
            command = [python, '-m', 'pytest', '-p', 'no:cacheprovider', *arguments]
            tests = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            lines = []
            for line in tests.stdout:
                print(line, end='', flush=True)
                lines.append(line)
            passes = tests.wait() == 0
            outcome = summary(''.join(lines)) or f'status {tests.returncode}'
        versions = [version_of(python, package) for package in ('jax', 'flax')]
    return passes, [*versions, outcome, f'{(time.monotonic() - start) / 60:.1f}']


def main() -> int:
    supported = supported_pythons((ROOT / 'pyproject.toml').read_text('utf-8'))
    pins = {
        'oldest': [oldest_jax((ROOT / 'requirements.txt').read_text('utf-8'))],
        'newest': [],
    }
    parser = argparse.ArgumentParser(prog='tests.versions', description=__doc__.splitlines()[0])
    parser.add_argument('--pythons', default=','.join(supported), help='Separated by commas.')
    parser.add_argument('--jax', default=','.join(pins), help='oldest, newest or both.')
    options, arguments = parser.parse_known_args()
    minors, ages = options.pythons.split(','), options.jax.split(',')
    if unknown := set(ages) - set(pins):
        parser.error(f'--jax={unknown.pop()} is none of {", ".join(pins)}')
    programs = find_pythons(minors)
    passed, rows = True, []
    for minor in minors:
        if minor not in programs:
            passed = False
            rows.append([minor, '', '', 'no such Python found', ''])
            continue
        for age in ages:
            print(f'Python {minor}, {age} JAX: {programs[minor]}', flush=True)
            passes, row = try_versions(programs[minor], pins[age], arguments)
            passed &= passes
            rows.append([minor, *row])
    print('\n' + format_table(rows))
    return 0 if passed else 1


if __name__ == '__main__':
    sys.exit(main())
