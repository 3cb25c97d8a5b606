"""coverage.tsv says for every recorded array which test compares it, or why none does."""

import csv
import gzip
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from golden_weights import GOLDEN

TESTS = Path(__file__).parent
HOW = {'compared', 'input', 'drawn', 'left out'}


@pytest.fixture(scope='module')
def rows():
    with open(GOLDEN / 'coverage.tsv') as file:
        return list(csv.DictReader(file, delimiter='\t'))


@pytest.fixture(scope='module')
def arrays_of_row(rows):
    """The arrays (file, name) of each row; an array belongs to the first row that matches it."""
    patterns = [(re.compile(row['files']), re.compile(row['arrays'])) for row in rows]
    found = [[] for _ in rows]
    for line in gzip.open(GOLDEN / 'names.txt.gz', 'rt'):
        file, name = line.rstrip('\n').split('\t')
        fitting = [
            i for i, (x, y) in enumerate(patterns) if x.fullmatch(file) and y.fullmatch(name)
        ]
        assert fitting, f'{file} {name} is in no row of coverage.tsv'
        found[fitting[0]].append((file, name))
    return found


def test_every_array_has_a_row_and_every_row_its_arrays(rows, arrays_of_row):
    assert sum(map(len, arrays_of_row)) == 5203
    for row, found in zip(rows, arrays_of_row, strict=True):
        assert len(found) == int(row['number']) > 0, row
        assert row['how'] in HOW, row


def test_tests_named_in_rows_exist(rows):
    for row in rows:
        where = row['where or why not']
        if row['how'] == 'left out':
            assert where, row
        else:
            file, function = where.split('::')
            assert re.search(rf'^def {function}\(', (TESTS.parent / file).read_text(), re.M), row


def test_compared_and_input_arrays_are_stored(rows, arrays_of_row):
    copied = {}
    for path in [*GOLDEN.glob('*.npz'), *(TESTS / 'evaluation' / 'golden').glob('*.npz')]:
        with np.load(path) as file:
            copied[path.stem] = set(file.files)
    for row, found in zip(rows, arrays_of_row, strict=True):
        if row['how'] in ('compared', 'input'):
            missing = [x for x in found if x[1] not in copied[x[0]]]
            assert not missing, (row, missing[:5])


def test_most_arrays_are_compared(rows):
    numbers = Counter()
    for row in rows:
        if not row['arrays'].endswith('(stride|shape|stats)'):
            numbers[row['how']] += int(row['number'])
    assert numbers['compared'] > 0.6 * numbers.total()
