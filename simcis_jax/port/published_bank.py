"""Reads and writes the query bank and the pseudo-label counts in the files of the published code.

`fake_query.pkl` is a `defaultdict(partial(deque_factory, K))` that maps a class to a deque of
queries, oldest first, each a list of floats. `psd_distribution.json` is a list of one float per
class.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from simcis_jax.errors import InputError, reading
from simcis_jax.port import torch_files, unsupported
from simcis_jax.port.pickles import Call, Global
from simcis_jax.runtime.files import write_atomically

FACTORY = Global('continual.trainer', 'deque_factory')
LARGEST_QUEUE = 10_000  # Queries per class; a run has 80. A damaged file may claim any number.


class _Partial:
    """Replaces functools.partial while unpickling."""

    def __init__(self, *_):
        self.arguments = ()

    def __setstate__(self, state: tuple) -> None:
        self.arguments = state[1]


class _Queues(dict):
    """Replaces collections.defaultdict while unpickling."""

    def __init__(self, factory: Any = None):
        super().__init__()
        self.factory = factory


def read_bank(path: str | Path, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads a query bank.

    Args:
        path: a file like fake_query.pkl.
        num_classes: C.

    Returns:
        queries [C, K, D] float32, oldest first, and the number of queries of each class [C] int32.

    Raises:
        InputError: the file is not a query bank, or has classes outside 0 .. C - 1, queries of
            several dimensions, too many queries, or numbers that are not finite.
        FileError: it cannot be read.
    """
    with unsupported.naming_file(path):
        bank = torch_files.read(
            path,
            pick=lambda top: [top],  # The bank has no tensors.
            allowed={
                '.'.join(FACTORY): None,
                'collections.defaultdict': lambda factory=None: _Queues(factory),
                'functools.partial': lambda *_: _Partial(),
                'collections.deque': deque,
            },
        )[0]
    try:
        arrays = {label: np.array(list(queue), np.float32) for label, queue in bank.items()}
        arrays = {label: array for label, array in arrays.items() if len(array)}
        sizes = {queue.maxlen for queue in bank.values()} | set(bank.factory.arguments)
        if any(array.ndim != 2 for array in arrays.values()):
            raise ValueError('a query is a list of numbers')
        hidden_dim = {array.shape[1] for array in arrays.values()}
    except (AttributeError, TypeError, ValueError, IndexError):
        raise InputError(
            f'{path} is not a query bank; give the fake_query.pkl that the published code wrote.'
        ) from None
    if not all(isinstance(size, int) for size in sizes):
        raise InputError(
            f'{path} has queues without a maximum length, the number of stored queries per class; '
            'give the fake_query.pkl that the published code wrote.'
        )
    if len(hidden_dim) != 1:
        raise InputError(
            f'{path} must hold queries, all of one dimension; it has the dimensions '
            f'{sorted(hidden_dim)}. Give the bank of one model.'
        )
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise InputError(f'{path} has queries with inf or NaN; give the bank of an intact run.')
    unknown = sorted(set(arrays) - set(range(num_classes)), key=str)
    if unknown:
        raise InputError(
            f'{path} has queries of the classes {unknown}; the model has {num_classes} classes. '
            'Give the bank of this model.'
        )
    if max(sizes) > LARGEST_QUEUE:
        raise InputError(
            f'{path} has queues of {max(sizes)} queries per class; at most {LARGEST_QUEUE} can be '
            'read. Give the bank of a run.'
        )
    queries = np.zeros((num_classes, max(sizes), *hidden_dim), np.float32)
    stored = np.zeros(num_classes, np.int32)
    for label, array in arrays.items():
        queries[label, : len(array)] = array
        stored[label] = len(array)
    return queries, stored


def write_bank(path: str | Path, queries: np.ndarray, written: np.ndarray) -> None:
    """Writes a query bank.

    Args:
        path: the file to write.
        queries: [C, K, D] float32, one ring buffer per class; its next slot is `written` modulo K.
        written: [C] integers, the number of queries ever stored for each class.
    """
    size = queries.shape[1]
    queues = {}
    for label in np.flatnonzero(written).tolist():
        order = np.arange(max(0, written[label] - size), written[label]) % size
        elements = list(queries[label, order])
        queues[label] = Call(Global('collections', 'deque'), ([], size), elements=elements)
    factory = Call(Global('functools', 'partial'), (FACTORY,), state=(FACTORY, (size,), {}, None))
    torch_files.write(path, Call(Global('collections', 'defaultdict'), (factory,), items=queues))


def read_counts(path: str | Path, num_classes: int) -> np.ndarray:
    """Reads the number of pseudo-labels of each class, [C] float32.

    Raises:
        InputError: the file is not a list of `num_classes` finite numbers of at least 0.
        FileError: it cannot be read.
    """
    try:
        with reading(path):
            counts = json.loads(Path(path).read_bytes())
    except ValueError:  # Neither text nor JSON.
        counts = None
    is_list = isinstance(counts, list) and all(isinstance(x, int | float) for x in counts)
    # Of other counts, the sampling weights would not be numbers.
    if not is_list or len(counts) != num_classes or not all(0 <= x < np.inf for x in counts):
        raise InputError(
            f'{path} must be a JSON list of {num_classes} numbers of at least 0, one per class; '
            'give the psd_distribution.json of this model.'
        )
    return np.array(counts, np.float32)


def counts_text(counts: np.ndarray) -> str:
    """The content of psd_distribution.json for counts [C]."""
    return json.dumps(counts.tolist())


def read_memory(paths: Mapping[str, str], empty: Any) -> Any:
    """A query bank from the files `bank` and `counts`; without one, its part stays empty.

    Args:
        paths: of the files that exist.
        empty: the `QueryBank` of the model before training.

    Raises:
        InputError: a file has another content, or does not fit the model.
        FileError: a file cannot be read.
    """
    num_classes, _, hidden_dim = empty.queries.shape
    memory = empty
    if 'bank' in paths:
        queries, written = read_bank(paths['bank'], num_classes)
        if queries.shape[2] != hidden_dim:
            raise InputError(
                f'{paths["bank"]} has queries of dimension {queries.shape[2]}, the model of '
                f'{hidden_dim}; give the bank of this model.'
            )
        memory = memory.replace(queries=queries, written=written)
    if 'counts' in paths:
        memory = memory.replace(counts=read_counts(paths['counts'], num_classes))
    return memory


def write_memory(paths: Mapping[str, str], memory: Mapping[str, Any]) -> None:
    """Writes the arrays of a query bank to the files `bank` and `counts`, as far as given.

    Raises:
        FileError: a file cannot be written.
    """
    queries, written, counts = (np.asarray(memory[key]) for key in ('queries', 'written', 'counts'))
    if 'bank' in paths:
        write_bank(paths['bank'], queries, written)
    if 'counts' in paths:
        write_atomically(Path(paths['counts']), counts_text(counts))
