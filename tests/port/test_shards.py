"""Pretrained models whose weights are split over several files."""

import json
import os
import pickle

import jax
import numpy as np
import plain_weights
import pytest
import safetensors.numpy
from golden_weights import GOLDEN

from simcis_jax.errors import MissingFileError
from simcis_jax.port import pretrained, torch_files
from simcis_jax.port.hugging_face_names import HUGGING_FACE
from simcis_jax.port.torch_weights import to_flax

CONFIG = json.loads((GOLDEN / 'mask2former_configs.json').read_text())['swin_small']
SHARDS = ('model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors')
INDEX = 'model.safetensors.index.json'


@pytest.fixture(scope='module')
def arrays():
    return plain_weights.file_arrays('swin_small')


def write_index(folder, weight_map, name=INDEX):
    (folder / name).write_text(json.dumps({'metadata': {}, 'weight_map': weight_map}))


@pytest.fixture
def folder(tmp_path, arrays):
    """A folder of transformers with two files of weights."""
    keys = sorted(arrays)
    weight_map = {}
    for name, part in zip(SHARDS, (keys[::2], keys[1::2]), strict=True):
        safetensors.numpy.save_file({key: arrays[key] for key in part}, tmp_path / name)
        weight_map |= dict.fromkeys(part, name)
    (tmp_path / 'config.json').write_text(json.dumps(CONFIG))
    write_index(tmp_path, weight_map)
    return tmp_path


def weight_map_of(folder):
    return json.loads((folder / INDEX).read_text())['weight_map']


def as_pickles(folder):
    """Turns the files into those of torch.save."""
    weight_map = {}
    for name in SHARDS:
        arrays = safetensors.numpy.load_file(folder / name)
        (folder / name).unlink()
        name = name.replace('model', 'pytorch_model').replace('safetensors', 'bin')
        tensors, storages = torch_files.tensors(arrays)
        torch_files.write(folder / name, tensors, storages)
        weight_map |= dict.fromkeys(arrays, name)
    (folder / INDEX).unlink()
    write_index(folder, weight_map, 'pytorch_model.bin.index.json')
    return folder / 'pytorch_model.bin.index.json'


def refused(path, message, kind=ValueError):
    with pytest.raises(kind, match=message) as error:
        pretrained.read(path)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('kind', ['safetensors', 'bin'])
def test_several_files_are_read_like_one(folder, arrays, kind):
    index = as_pickles(folder) if kind == 'bin' else folder / INDEX
    expected = to_flax(
        {key: x for key, x in arrays.items() if 'encoder.layernorm' not in key},
        HUGGING_FACE['swin'],
    )
    for path in (folder, index):
        jax.tree.map(np.testing.assert_array_equal, pretrained.read(path).params, expected)


def test_a_missing_file_and_one_alone_are_errors(folder):
    refused(folder / SHARDS[0], 'holds a Mask2Former of Hugging Face; give its folder')
    (folder / SHARDS[1]).unlink()
    refused(folder, f'{SHARDS[1]} does not exist, but {INDEX} lists it; download', MissingFileError)
    (folder / INDEX).unlink()
    refused(folder, r'the files that it is split into and their index', MissingFileError)


def test_a_truncated_file_is_an_error(folder):
    path = folder / SHARDS[1]
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, f'{SHARDS[1]} is damaged')


def test_an_index_that_does_not_describe_its_files_is_an_error(folder):
    true = weight_map_of(folder)
    write_index(folder, true | {'extra.weight': SHARDS[0]})
    refused(folder, f'does not describe {SHARDS[0]}, which does not hold extra.weight; download')
    write_index(folder, {key: name for key, name in true.items() if key != 'class_predictor.bias'})
    refused(folder, 'which also holds class_predictor.bias; download both again')
    write_index(folder, dict.fromkeys(true, SHARDS[0]))
    refused(folder, f'does not describe {SHARDS[0]}, which does not hold')


@pytest.mark.parametrize('name', ['../model.safetensors', '/model.safetensors', '..', '', 3, None])
def test_an_index_names_only_files_beside_it(folder, name):
    write_index(folder, weight_map_of(folder) | {'class_predictor.bias': name})
    refused(folder, 'the file of class_predictor.bias is .*must be the name of a file in the same')


@pytest.mark.parametrize('text', ['{}', '{"weight_map": []}', '{"weight_map": {}}', '[]', '{"we'])
def test_an_index_without_a_list_is_an_error(folder, text):
    (folder / INDEX).write_text(text)
    refused(folder, f'{INDEX} (has no weight_map|is not JSON|holds a list)')


def test_code_in_a_file_of_pickles_does_not_run(folder, tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'proof'),)

    index = as_pickles(folder)
    path = folder / 'pytorch_model-00002-of-00002.bin'
    path.write_bytes(pickle.dumps({'class_predictor.bias': Malicious()}))
    refused(index, '00002.bin is rejected: it uses posix.mkdir')
    assert not (tmp_path / 'proof').exists()
