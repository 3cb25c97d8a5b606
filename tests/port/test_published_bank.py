import contextlib
import json
import pickle
import sys
import types
import zipfile
from collections import defaultdict, deque
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.continual import virtual_query
from simcis_jax.port import published_bank


def deque_factory(size):
    return deque(maxlen=size)


# The published code pickles the function under this name.
deque_factory.__module__, deque_factory.__qualname__ = 'continual.trainer', 'deque_factory'


def published(tmp_path, queues, size=4):
    """Pickles a bank with Python, as the published code does."""
    bank = defaultdict(partial(deque_factory, size))
    for label, queries in queues.items():
        bank[label].extend(queries)
    with published_module():
        return write(tmp_path / 'fake_query.pkl', pickle.dumps(bank, 2))


@contextlib.contextmanager
def published_module():
    """Makes the function of the published code importable."""
    module = types.ModuleType('continual.trainer')
    module.deque_factory = deque_factory
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, 'continual', types.ModuleType('continual'))
        patch.setitem(sys.modules, 'continual.trainer', module)
        yield


def write(path, data):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('fake_query/data.pkl', data)
        archive.writestr('fake_query/version', '3\n')
    return path


def read_as_published(path):
    """Unpickles a bank with Python, as the published code does."""
    with zipfile.ZipFile(path) as archive, published_module():
        (name,) = [name for name in archive.namelist() if name.endswith('/data.pkl')]
        return pickle.loads(archive.read(name))


def queries(rng, count, hidden_dim=3):
    return rng.normal(size=(count, hidden_dim)).astype(np.float32).tolist()


def test_reading_and_writing_a_published_bank_gives_the_same_bank(tmp_path):
    rng = np.random.default_rng(0)
    queues = {5: queries(rng, 4), 0: queries(rng, 1), 2: queries(rng, 9)}
    path = published(tmp_path, queues)
    stored, written = published_bank.read_bank(path, num_classes=7)
    assert stored.shape == (7, 4, 3) and written.tolist() == [1, 0, 4, 0, 0, 4, 0]
    np.testing.assert_array_equal(stored[2], np.float32(queues[2][-4:]))
    published_bank.write_bank(tmp_path / 'again.pkl', stored, written)
    again, before = (read_as_published(p) for p in (tmp_path / 'again.pkl', path))
    assert again == before
    assert type(again) is defaultdict and type(again[5][0][0]) is float
    assert {queue.maxlen for queue in again.values()} == {4} == {again[6].maxlen}


def test_queries_are_written_from_oldest_to_newest(tmp_path):
    bank = virtual_query.create(num_classes=3, bank_size=4, hidden_dim=2)
    rows = jnp.arange(12.0).reshape(6, 2)
    for row in rows:
        bank = virtual_query.enqueue(bank, row[None], jnp.array([1]))
    published_bank.write_bank(
        tmp_path / 'b.pkl', np.asarray(bank.queries), np.asarray(bank.written)
    )
    assert list(read_as_published(tmp_path / 'b.pkl')[1]) == rows[2:].tolist()
    stored, written = published_bank.read_bank(tmp_path / 'b.pkl', num_classes=3)
    np.testing.assert_array_equal(stored[1], rows[2:])
    assert written.tolist() == [0, 4, 0]


def test_a_partly_filled_bank_is_read_as_it_was_written(tmp_path):
    stored = np.zeros((3, 4, 2), np.float32)
    stored[2, :3] = np.random.default_rng(0).normal(size=(3, 2))
    published_bank.write_bank(tmp_path / 'b.pkl', stored, np.array([0, 0, 3], np.int32))
    again, written = published_bank.read_bank(tmp_path / 'b.pkl', num_classes=3)
    assert again.tobytes() == stored.tobytes() and written.tolist() == [0, 0, 3]


def test_a_malicious_bank_is_rejected(tmp_path):
    path = write(tmp_path / 'b.pkl', pickle.dumps(defaultdict(partial(eval, 'harm')), 2))
    with pytest.raises(ValueError, match='rejected: it uses .*builtin.*eval'):
        published_bank.read_bank(path, num_classes=3)


@pytest.mark.parametrize(
    ('queues', 'message'),
    [
        ({9: [[1.0]]}, r'queries of the classes \[9\]; the model has 3 classes'),
        ({'1': [[1.0]]}, r"queries of the classes \['1'\]"),
        ({1: [[1.0], [1.0, 2.0]]}, 'is not a query bank'),
        ({1: [[1.0]], 2: [[1.0, 2.0]]}, 'all of one dimension'),
        ({}, 'must hold queries'),
        ({1: [[float('nan')]]}, 'queries with inf or NaN'),
        ({1: [[[1.0]]]}, 'is not a query bank'),
    ],
)
def test_a_bank_that_does_not_fit_the_model_is_an_error(tmp_path, queues, message):
    with pytest.raises(ValueError, match=message):
        published_bank.read_bank(published(tmp_path, queues), num_classes=3)


def test_a_bank_without_a_number_of_slots_is_an_error(tmp_path):
    path = published(tmp_path, {1: [[1.0]]}, size=None)
    with pytest.raises(ValueError, match='queues without a maximum length'):
        published_bank.read_bank(path, num_classes=3)


def test_a_bank_of_absurd_size_is_an_error(tmp_path):
    path = published(tmp_path, {1: [[1.0]]}, size=10**13)
    with pytest.raises(ValueError, match='queues of 10000000000000 queries per class; at most 100'):
        published_bank.read_bank(path, num_classes=3)


def test_another_pickle_is_not_a_bank(tmp_path):
    path = write(tmp_path / 'b.pkl', pickle.dumps([1, 2], 2))
    with pytest.raises(ValueError, match='b.pkl is not a query bank'):
        published_bank.read_bank(path, num_classes=3)


def test_reading_and_writing_counts_gives_the_same_text(tmp_path):
    text = json.dumps([0.0, 16777216.0, 3.0])
    (tmp_path / 'counts.json').write_text(text)
    counts = published_bank.read_counts(tmp_path / 'counts.json', num_classes=3)
    assert counts.dtype == np.float32 and counts.tolist() == [0, 16777216, 3]
    assert published_bank.counts_text(counts) == text


@pytest.mark.parametrize(
    'text',
    [
        '[1, 2]',
        '{"a": 1}',
        '[1, 2, "x"]',
        'no json',
        '[1, 2, null]',
        '[1, 2, NaN]',
        '[1, 2, Infinity]',
        '[1, 2, -1]',
    ],
)
def test_counts_that_do_not_fit_the_model_are_an_error(tmp_path, text):
    (tmp_path / 'counts.json').write_text(text)
    with pytest.raises(ValueError, match='counts.json must be a JSON list of 3 numbers'):
        published_bank.read_counts(tmp_path / 'counts.json', num_classes=3)
