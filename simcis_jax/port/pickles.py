"""Reads and writes pickles without importing or calling anything that they name.

A pickle is a program that names functions and calls them. Here every name must be on a list, which
says what is called instead; the function itself is never looked up.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from simcis_jax.errors import InputError


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, allowed: Mapping[str, Any], persistent_load: Callable):
        super().__init__(file, encoding='latin1')  # Some ImageNet weights were written by Python 2.
        self._allowed, self.persistent_load = allowed, persistent_load

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[f'{module}.{name}']
        except KeyError:
            raise _NotAllowed(f'{module}.{name}') from None


class _NotAllowed(Exception):
    """Raised with the name that is not allowed."""


def load(
    file: BinaryIO, allowed: Mapping[str, Any], persistent_load: Callable[[Any], Any] | None = None
) -> Any:
    """Reads the next pickle in a file.

    Args:
        file: the open file; afterwards it is positioned at the end of the pickle.
        allowed: 'module.name' that the pickle may use -> what is called or returned instead.
        persistent_load: returns the object with a given persistent id, which is stored outside the
            pickle.

    Raises:
        InputError: the pickle uses another name, or is damaged.
    """

    def no_outside(_):
        raise InputError('it refers to data outside the pickle')

    try:
        return _Unpickler(file, allowed, persistent_load or no_outside).load()
    except _NotAllowed as error:
        raise InputError(
            f'{file.name} is rejected: it uses {error}, which has no place in a checkpoint and '
            'could run code; if you trust it, save its state dict as .safetensors.'
        ) from None
    except Exception as error:  # A damaged pickle can fail in any way.
        raise InputError(
            f'{file.name} cannot be read, it is damaged or not a pickle ({error}); download it '
            'again, or save the state dict of the model as .safetensors.'
        ) from None


class Global(NamedTuple):
    """A function or class to be named in a pickle."""

    module: str
    name: str


class Call(NamedTuple):
    """The result of a function call, with an optional state, list elements or dict items."""

    function: Global
    arguments: tuple
    state: Any = None
    elements: list | None = None
    items: Mapping | None = None


class Outside(NamedTuple):
    """An object stored outside the pickle, by its persistent id."""

    id: tuple


def dumps(value: Any) -> bytes:
    """Pickles an object with protocol 2.

    It may consist of None, bool, int, float, str, tuple, list, dict, Global, Call and Outside. A
    NumPy vector is written as a list of floats.
    """
    chunks = [pickle.PROTO, b'\x02']
    _write(value, chunks.append)
    return b''.join([*chunks, pickle.STOP])


def _write(value: Any, emit: Callable[[bytes], None]) -> None:
    def write(opcode, *values):
        for x in values:
            _write(x, emit)
        emit(opcode)

    match value:
        case None:
            emit(pickle.NONE)
        case bool():
            emit(pickle.NEWTRUE if value else pickle.NEWFALSE)
        case int():
            number = pickle.encode_long(value)
            emit(pickle.LONG1 + bytes([len(number)]) + number)
        case float():
            emit(pickle.BINFLOAT + struct.pack('>d', value))
        case str():
            text = value.encode()
            emit(pickle.BINUNICODE + struct.pack('<I', len(text)) + text)
        case Global():
            emit(pickle.GLOBAL + f'{value.module}\n{value.name}\n'.encode())
        case Outside():
            write(pickle.BINPERSID, value.id)
        case Call():
            write(pickle.REDUCE, value.function, value.arguments)
            _write_content(value.elements, value.items, write, emit)
            if value.state is not None:
                write(pickle.BUILD, value.state)
        case tuple():
            emit(pickle.MARK)
            write(pickle.TUPLE, *value)
        case list():
            emit(pickle.EMPTY_LIST)
            _write_content(value, None, write, emit)
        case dict():
            emit(pickle.EMPTY_DICT)
            _write_content(None, value, write, emit)
        case np.ndarray():
            coded = np.empty(value.shape, [('opcode', 'S1'), ('number', '>f8')])
            coded['opcode'], coded['number'] = pickle.BINFLOAT, value
            emit(pickle.EMPTY_LIST + pickle.MARK + coded.tobytes() + pickle.APPENDS)
        case _:
            raise TypeError(f'cannot pickle {type(value)}')


def _write_content(elements: list | None, items: Mapping | None, write: Callable, emit: Callable):
    if elements:
        emit(pickle.MARK)
        write(pickle.APPENDS, *elements)
    if items:
        emit(pickle.MARK)
        write(pickle.SETITEMS, *(x for item in items.items() for x in item))
