"""Files are UTF-8 in every locale; characters that a terminal cannot show are replaced."""

import ast
import html
import json
import os
import re
import subprocess
from pathlib import Path

import commands
import cv2
import numpy as np
import pytest

from simcis_jax.training.workdir import write_atomically

ROOT = Path(__file__).parent.parent
SOURCES = [path for room in ('simcis_jax', 'experiments') for path in (ROOT / room).rglob('*.py')]
# Text modes of `open`; other functions named open, such as tarfile's, take other arguments.
TEXT_MODE = re.compile(r'[rwax]\+?')


def calls_without_encoding(source):
    """Line numbers of calls that read or write text without naming an encoding."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or any(k.arg == 'encoding' for k in call.keywords):
            continue
        name = getattr(call.func, 'attr', getattr(call.func, 'id', ''))
        is_method = isinstance(call.func, ast.Attribute)
        values = [getattr(argument, 'value', None) for argument in call.args]
        if name in ('read_text', 'write_text'):
            is_bare = len(values) == ('read', 'write').index(name.split('_')[0])
        elif name == 'open':
            mode = values[1 - is_method :] or ['r']
            is_bare = isinstance(mode[0], str) and TEXT_MODE.fullmatch(mode[0])
        else:
            is_bare = False
        if is_bare:
            yield call.lineno


@pytest.mark.parametrize(
    ('source', 'is_bare'),
    [
        ('path.read_text()', True),
        ("path.read_text('utf-8')", False),
        ('path.write_text(text)', True),
        ("path.write_text(text, encoding='utf-8')", False),
        ('open(path)', True),
        ("open(path, 'w')", True),
        ("path.open('a+')", True),
        ('path.open()', True),
        ("open(path, 'rb')", False),
        ("path.open('w', encoding='utf-8')", False),
        ("tarfile.open(path, 'r:')", False),
    ],
)
def test_calls_without_encoding_are_found(source, is_bare):
    assert bool(list(calls_without_encoding(source))) == is_bare


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_call_names_an_encoding(path):
    assert not list(calls_without_encoding(path.read_text('utf-8')))


# The command on the built-in data set with non-ASCII class names.
RENAMED = """
import dataclasses, runpy, sys
from simcis_jax.data import shapes

shapes.CLASSES = tuple(dataclasses.replace(c, name=f'{c.name} \\u6728') for c in shapes.CLASSES)
sys.argv[0] = 'main'
runpy.run_module('simcis_jax.main', run_name='__main__')
"""
ASCII_LOCALE = {'LC_ALL': 'POSIX', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}


@pytest.mark.slow
def test_non_ascii_class_names_work_in_an_ascii_locale(finished, tmp_path):
    run, photo = tmp_path / 'run', tmp_path / 'photo.png'
    cv2.imwrite(str(photo), np.full((64, 64, 3), 90, np.uint8))
    two_stages = ('--config.protocol.base=10', '--config.training.base_steps=2')

    def output_of(process):
        text, _ = process.communicate()
        assert process.returncode == 0, text
        return text

    pipes = {'environment': ASCII_LOCALE, 'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT}
    printed = output_of(commands.start_run(run, *two_stages, program=('-c', RENAMED), **pipes))
    assert 'sky ?' in printed and printed.isascii()
    predict = ('-m', 'simcis_jax.predict')
    arguments = (f'--checkpoint={run}/stage_1', f'--images={photo}', f'--out={tmp_path}/out')
    output_of(commands.start(predict, *arguments, **pipes))
    output_of(commands.start(('-m', 'simcis_jax.report'), f'--workdir={run}', **pipes))
    listed = json.loads((tmp_path / 'out/panoptic.json').read_text('utf-8'))['categories']
    assert 'sky 木' in [category['name'] for category in listed]
    assert 'sky 木' in html.unescape((run / 'report.html').read_text('utf-8'))


def test_a_file_name_that_is_not_utf8_is_written_as_its_bytes(tmp_path):
    write_atomically(tmp_path / 'list.txt', os.fsdecode(b'caf\xe9.jpg') + ' 木')
    assert (tmp_path / 'list.txt').read_bytes() == b'caf\xe9.jpg ' + '木'.encode()
