"""Tests of reading and writing torch.save files, also against PyTorch where it is installed."""

import pickle
import struct
import zipfile
from collections import OrderedDict

import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.port import names, pickles, torch_files
from simcis_jax.port.pickles import Call, Global, Outside
from simcis_jax.port.state_dicts import as_float32

FLOATS = ('storage', Global('torch', 'FloatStorage'), '0', 'cpu', 6)
TENSOR = Global('torch._utils', '_rebuild_tensor_v2')


def tensor(offset, shape, strides, storage=FLOATS):
    return Call(TENSOR, (Outside(storage), offset, shape, strides, False, {}))


NUMBERS = np.arange(6, dtype='<f4').tobytes()


def write_zip(path, value, data=NUMBERS, **kwargs):
    with zipfile.ZipFile(path, 'w', **kwargs) as archive:
        archive.writestr('archive/data.pkl', pickles.dumps(value))
        archive.writestr('archive/data/0', data)
    return path


def test_tensors_are_read_as_they_were_written(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {'a': (3, 4, 5), 'empty': (0, 3), 'scalar': (), 'b': (7,)}
    arrays = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    arrays['copy'] = arrays['a']
    made, storages = torch_files.tensors(arrays)
    assert len(storages) == 4
    torch_files.write(tmp_path / 'x.pth', {'model': made, 'iteration': 3}, storages)
    again = torch_files.read(tmp_path / 'x.pth', pick=lambda top: top['model'])
    assert again.keys() == arrays.keys()
    for key, value in arrays.items():
        assert again[key].shape == value.shape and again[key].dtype == value.dtype
        assert again[key].tobytes() == value.tobytes()
    assert torch_files.read(tmp_path / 'x.pth', pick=lambda top: top['iteration']) == 3


def test_storages_are_aligned_to_64_bytes(tmp_path):
    _, storages = torch_files.tensors({'a': np.ones(5, np.float32), 'b': np.ones(3, np.float32)})
    torch_files.write(tmp_path / 'x.pth', {}, storages)
    content = (tmp_path / 'x.pth').read_bytes()
    assert content.find(np.ones(5, '<f4').tobytes()) % 64 == 0
    assert content.rfind(np.ones(3, '<f4').tobytes()) % 64 == 0


def test_views_of_a_storage_are_read(tmp_path):
    value = {'t': tensor(1, (2, 2), (1, 3)), 's': tensor(4, (), ())}
    read = torch_files.read(write_zip(tmp_path / 'x.pth', value))
    np.testing.assert_array_equal(read['t'], [[1, 4], [2, 5]])
    assert read['s'] == 4 and read['s'].shape == ()


@pytest.mark.parametrize('view', [
    (0, (7,), (1,)), (1, (6,), (1,)), (0, (2, 2), (5, 2)), (-1, (2,), (1,)), (0, (2,), (-1,)),
    (0, (10**9, 2), (0, 1)), (0, (-2, -3), (1, 1)), ('0', (2,), (1,)), (0, 2, 1),
])  # fmt: skip
def test_a_view_that_exceeds_its_storage_is_an_error(tmp_path, view):
    path = write_zip(tmp_path / 'x.pth', {'t': tensor(*view)})
    with pytest.raises(ValueError, match='x.pth'):
        torch_files.read(path)


def test_a_storage_of_the_wrong_size_is_an_error(tmp_path):
    path = write_zip(tmp_path / 'x.pth', {'t': tensor(0, (6,), (1,))}, data=b'1234')
    with pytest.raises(ValueError, match='a storage of 6 numbers has 4 bytes'):
        torch_files.read(path)


def test_a_compressed_file_is_an_error(tmp_path):
    path = write_zip(tmp_path / 'x.pth', {}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match='x.pth is a compressed zip file'):
        torch_files.read(path)


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 and no more', b'text'])
def test_another_kind_of_file_is_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / 'x.pth').write_bytes(content)
    with pytest.raises(ValueError, match='x.pth'):
        torch_files.read(tmp_path / 'x.pth')


@pytest.mark.parametrize('place', [6, 8, 28, 46])
def test_a_zip_file_with_a_changed_byte_is_an_error_that_names_it(tmp_path, place):
    """Version, flags, length of the name and name of the first record, in the directory."""
    path = write_zip(tmp_path / 'x.pth', {'t': tensor(0, (6,), (1,))})
    content = bytearray(path.read_bytes())
    content[content.index(b'PK\x01\x02') + place] = 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match='x.pth'):
        torch_files.read(path)


def test_an_old_file_without_one_of_its_storages_is_an_error(tmp_path):
    value = {'a': tensor(0, (6,), (1,))}
    pieces = [torch_files.OLD_MAGIC, 1001, {'little_endian': True}, value, ['9']]
    (tmp_path / 'x.pth').write_bytes(b''.join(map(pickles.dumps, pieces)))
    with pytest.raises(ValueError, match='x.pth is truncated or damaged'):
        torch_files.read(tmp_path / 'x.pth')


def test_numbers_of_bfloat16_are_read(tmp_path):
    numbers = jnp.array([1.5, -2.0], jnp.bfloat16)
    storage = ('storage', Global('torch', 'BFloat16Storage'), '0', 'cpu', 2)
    data = np.asarray(numbers).tobytes()
    path = write_zip(tmp_path / 'x.pth', {'t': tensor(0, (2,), (1,), storage)}, data=data)
    state = as_float32(path, torch_files.read(path), names.BUFFERS)
    assert state['t'].dtype == np.float32 and state['t'].tolist() == [1.5, -2.0]


def test_another_zip_file_is_an_error(tmp_path):
    with zipfile.ZipFile(tmp_path / 'x.pth', 'w') as archive:
        archive.writestr('readme', 'hello')
    with pytest.raises(ValueError, match='x.pth is a zip file, but not one of torch.save'):
        torch_files.read(tmp_path / 'x.pth')


def test_the_old_format_can_be_read(tmp_path):
    second = (*FLOATS[:2], '1', 'cpu', 2)
    value = {'b': tensor(0, (2,), (1,), second), 'a': tensor(0, (2, 3), (3, 1))}
    storages = {'0': np.arange(6), '1': np.array([8, 9])}
    pieces = [torch_files.OLD_MAGIC, 1001, {'little_endian': True}, value, list(storages)]
    content = b''.join(map(pickles.dumps, pieces))
    for numbers in storages.values():
        content += struct.pack('<q', len(numbers)) + numbers.astype('<f4').tobytes()
    (tmp_path / 'x.pth').write_bytes(content)
    read = torch_files.read(tmp_path / 'x.pth')
    np.testing.assert_array_equal(read['a'], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(read['b'], [8, 9])


@pytest.mark.parametrize('protocol', range(6))
def test_pickled_arrays_can_be_read(tmp_path, protocol):
    arrays = {
        'a': np.arange(6, dtype=np.float32).reshape(2, 3),
        'columns': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        'big': np.arange(3, dtype='>i4'),
    }
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps({'model': arrays}, protocol))
    read = torch_files.read(tmp_path / 'x.pkl', pick=lambda top: top['model'])
    for key, value in arrays.items():
        np.testing.assert_array_equal(read[key], value)
        assert read[key].dtype.kind == value.dtype.kind


def test_pickled_arrays_of_objects_are_an_error(tmp_path):
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps({'a': np.array([{}, 'x'])}))
    with pytest.raises(ValueError, match="'O8' instead of numbers"):
        torch_files.read(tmp_path / 'x.pkl')


def test_pytorch_can_read_our_files(tmp_path):
    torch = pytest.importorskip('torch')
    arrays = {'a': np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}
    made, storages = torch_files.tensors(arrays)
    model = Call(Global('collections', 'OrderedDict'), (), items=made, state={'_metadata': {'': 2}})
    torch_files.write(tmp_path / 'x.pth', {'model': model}, storages)
    read = torch.load(tmp_path / 'x.pth', weights_only=True)['model']
    assert type(read) is OrderedDict and read._metadata == {'': 2}
    assert read['a'].numpy().tobytes() == arrays['a'].tobytes()


@pytest.mark.parametrize('is_zip', [True, False])
def test_files_of_pytorch_can_be_read(tmp_path, is_zip):
    torch = pytest.importorskip('torch')
    state = {
        'view': torch.arange(12.0).reshape(3, 4).t()[1:],
        'parameter': torch.nn.Parameter(torch.randn(3)),
        'count': torch.tensor(3),
        'half': torch.ones(2).half(),
    }
    torch.save({'model': state}, tmp_path / 'x.pth', _use_new_zipfile_serialization=is_zip)
    read = torch_files.read(tmp_path / 'x.pth', pick=lambda top: top['model'])
    for key, value in state.items():
        assert read[key].shape == tuple(value.shape)
        np.testing.assert_array_equal(read[key], value.detach().numpy())
