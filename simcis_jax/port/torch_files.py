"""Reads and writes files of torch.save without PyTorch; also reads pickled NumPy arrays.

Current files are zip archives: `NAME/data.pkl` is a pickle that refers to storages, and each
storage is a record `NAME/data/KEY` of plain numbers. Older files are a sequence of pickles and then
the storages.
"""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from simcis_jax.errors import InputError, UserError, reading
from simcis_jax.port import pickles
from simcis_jax.port.pickles import Call, Global, Outside
from simcis_jax.runtime.files import replacing

OLD_MAGIC = 0x1950A86A20F9469CFC6C
BFLOAT16 = np.dtype(jnp.bfloat16).name  # NumPy knows it by this name, through JAX.
STORAGES = {
    f'torch.{name}Storage': code
    for name, code in dict(
        Double='f8', Float='f4', Half='f2', Long='i8', Int='i4', Short='i2', Char='i1',
        Byte='u1', Bool='b1', BFloat16=BFLOAT16,
    ).items()
}  # fmt: skip
DTYPES = {f'{kind}{size}' for kind in 'fiu' for size in (1, 2, 4, 8)} | {'b1', BFLOAT16}


@dataclasses.dataclass
class Storage:
    """The numbers of a tensor in a file, which are read on demand."""

    dtype: np.dtype
    size: int
    read: Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage; shape, strides and offset are in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def numpy(self) -> np.ndarray:
        """Reads the tensor.

        Raises:
            InputError: the view exceeds its storage.
        """
        size = math.prod(self.shape)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        whole = self.storage.size
        if min(0, self.offset, *self.shape, *self.strides) < 0 or size and last >= whole:
            raise InputError(
                f'a tensor of shape {self.shape} exceeds its storage of {whole} numbers'
            )
        if size > whole:
            raise InputError(
                f'a tensor of shape {self.shape} repeats the numbers of its storage of {whole}'
            )
        dtype = self.storage.dtype
        data = self.storage.read()
        if len(data) != whole * dtype.itemsize:
            raise InputError(f'a storage of {whole} numbers has {len(data)} bytes')
        flat = np.frombuffer(data, dtype)[self.offset :]
        strides = [s * dtype.itemsize for s in self.strides]
        return np.array(np.lib.stride_tricks.as_strided(flat, self.shape, strides), order='C')


class _Array:
    """Replaces numpy.ndarray while unpickling."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, column_major, data = state
        data = data.encode('latin1') if isinstance(data, str) else data
        flat = np.frombuffer(data, dtype.dtype)
        self._value = flat.reshape(shape, order='F' if column_major else 'C')

    def numpy(self) -> np.ndarray:
        """The array."""
        return np.array(self._value, order='C')


class _Dtype:
    """Replaces numpy.dtype while unpickling; only numeric types are allowed."""

    def __init__(self, name: str):
        if name not in DTYPES:
            raise InputError(f'an array of {name!r} instead of numbers')
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


def _allowed() -> dict[str, Any]:
    """The names that tensors and arrays need, with their replacements.

    They are created anew for every file, because a pickle may set attributes of them."""

    def tensor(storage, offset, shape, strides, *_):
        return Tensor(storage, offset, tuple(shape), tuple(strides))

    def array(*_):
        return _Array()

    def array_of(data, dtype, shape, order):
        made = _Array()
        made.__setstate__((1, shape, dtype, order == 'F', data))
        return made

    names = {
        'collections.OrderedDict': OrderedDict,
        'torch._utils._rebuild_tensor_v2': tensor,
        'torch._utils._rebuild_parameter': lambda data, *_: data,
        'torch.Size': lambda shape: tuple(shape),
        'numpy.ndarray': None,
        'numpy.dtype': lambda name, *_: _Dtype(name),
        '_codecs.encode': lambda text, _: text.encode('latin1'),
    }
    for core in ('numpy.core', 'numpy._core'):
        names |= {f'{core}.multiarray._reconstruct': array, f'{core}.numeric._frombuffer': array_of}
    return names | STORAGES


def read(
    path: str | Path,
    pick: Callable[[Any], Any] = lambda top: top,
    allowed: Mapping[str, Any] | None = None,
) -> Any:
    """Reads the object in a file; nothing that the file names is imported or called.

    Args:
        path: a file of torch.save, or a pickle of NumPy arrays.
        pick: selects the part of the object to return; if it is a dict, its tensors are read and
            converted to NumPy arrays. Other tensors are not read.
        allowed: additional names and their replacements, as in `pickles.load`.

    Raises:
        InputError: the file is damaged, or uses a name that is not allowed.
        FileError: it cannot be read.
    """
    names = _allowed() | dict(allowed or {})
    with reading(path), open(path, 'rb') as file:
        try:
            is_zip = file.read(4) == b'PK\x03\x04'
            file.seek(0)
            return (_read_zip if is_zip else _read_stream)(file, names, pick)
        except (UserError, OSError, MemoryError):
            raise
        except Exception as error:  # A damaged zip file or stream can fail in any way.
            raise InputError(
                f'{path} is truncated or damaged ({error}); download or copy it again.'
            ) from None


def _storage(id: tuple, reader: Callable[[str], bytes]) -> Storage:
    _, code, key, _, size = id[:5]
    if len(id) == 6 and id[5] is not None:
        raise InputError('it has views of storages, a feature of very old PyTorch versions')
    return Storage(_Dtype(code).dtype, size, lambda: reader(key))


def _read_zip(file: BinaryIO, allowed: Mapping[str, Any], pick: Callable) -> Any:
    with zipfile.ZipFile(file) as archive:
        records = set(archive.namelist())
        found = [name for name in records if name.split('/')[1:] == ['data.pkl']]
        if len(found) != 1:
            raise InputError(
                f'{file.name} is a zip file, but not one of torch.save; if it is an archive, '
                'unpack it and give the weights in it.'
            )
        if found[0].removesuffix('data.pkl') + 'constants.pkl' in records:
            raise InputError(
                f'{file.name} is a TorchScript model; save the state dict of the model instead.'
            )
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise InputError(
                f'{file.name} is a compressed zip file, which torch.save does not write; download '
                'it again, or save it again with torch.save.'
            )
        folder = found[0].removesuffix('data.pkl')
        if f'{folder}byteorder' in records and archive.read(f'{folder}byteorder') != b'little':
            raise InputError(
                f'{file.name} is from a big-endian machine; save it on a little-endian one.'
            )

        def read_record(key):
            return archive.read(f'{folder}data/{key}')

        with archive.open(found[0]) as record:
            record.name = file.name
            top = pickles.load(record, allowed, lambda id: _storage(id, read_record))
        return _as_numpy(pick(top), file.name)


def _read_stream(file: BinaryIO, allowed: Mapping[str, Any], pick: Callable) -> Any:
    top = pickles.load(file, allowed)
    storages, positions = {}, {}

    def read_storage(key):
        file.seek(positions[key])
        return file.read(storages[key].size * storages[key].dtype.itemsize)

    def storage(id):
        return storages.setdefault(id[2], _storage(id, read_storage))

    if isinstance(top, int) and top == OLD_MAGIC:
        for _ in ('protocol', 'system'):
            pickles.load(file, {})
        top = pickles.load(file, allowed, storage)
        for key in pickles.load(file, {}):
            positions[key] = file.tell() + 8  # Each storage begins with its size, 8 bytes.
            file.seek(positions[key] + storages[key].size * storages[key].dtype.itemsize)
    return _as_numpy(pick(top), file.name)


def _as_numpy(value: Any, name: str) -> Any:
    def read_array(x):
        try:
            return x.numpy()
        except Exception as error:  # Its fields come from the pickle and can be anything.
            raise InputError(f'{name} is damaged: {error}.') from None

    if not isinstance(value, dict):
        return value
    kinds = Tensor | _Array
    return {key: read_array(x) if isinstance(x, kinds) else x for key, x in value.items()}


def tensors(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Call], list[np.ndarray]]:
    """Converts float32 arrays to tensors for a pickle, and their storages.

    Names that refer to the same array object share one storage."""
    storages = {id(array): array for array in arrays.values()}
    keys = {identity: str(i) for i, identity in enumerate(storages)}
    made = {}
    for name, array in arrays.items():
        where = ('storage', Global('torch', 'FloatStorage'), keys[id(array)], 'cpu', array.size)
        strides = tuple(math.prod(array.shape[i + 1 :]) for i in range(array.ndim))
        hooks = Call(Global('collections', 'OrderedDict'), ())
        made[name] = Call(
            Global('torch._utils', '_rebuild_tensor_v2'),
            (Outside(where), 0, array.shape, strides, False, hooks),
        )
    return made, list(storages.values())


def write(path: str | Path, value: Any, storages: list[np.ndarray] | None = None) -> None:
    """Writes a file that torch.load reads; an existing file is replaced only at the end.

    Args:
        path: the file to write.
        value: an object that `pickles.dumps` takes, with tensors from `tensors`.
        storages: the float32 arrays of the tensors.

    Raises:
        FileError: the file cannot be written.
    """
    path = Path(path)
    with replacing(path) as part, zipfile.ZipFile(part, 'w') as archive:

        def add(name, data):
            # Records are aligned to 64 bytes, so that torch.load can memory-map them.
            info = zipfile.ZipInfo(f'{path.stem}/{name}')
            padding = -(archive.fp.tell() + 30 + len(info.filename.encode()) + 4) % 64
            info.extra = b'FB' + padding.to_bytes(2, 'little') + bytes(padding)
            archive.writestr(info, data)

        add('data.pkl', pickles.dumps(value))
        add('byteorder', 'little')
        for key, storage in enumerate(storages or []):
            add(f'data/{key}', np.ascontiguousarray(storage, '<f4').tobytes())
        add('version', '3\n')
