"""Models of the original Mask2Former in the files of transformers and detectron2."""

import json
import pickle

import jax
import numpy as np
import plain_weights
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict
from golden_weights import GOLDEN

from simcis_jax.errors import MissingFileError
from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.port import hugging_face, names, pretrained, state_dicts, torch_files
from simcis_jax.port.architecture import PLAIN, plain_settings
from simcis_jax.port.hugging_face_names import HUGGING_FACE
from simcis_jax.port.torch_weights import to_flax, to_torch

CONFIGS = json.loads((GOLDEN / 'mask2former_configs.json').read_text())
NAMES = tuple(f'class {label}' for label in range(plain_weights.NUM_CLASSES))
ENCODER = 'model.pixel_level_module.encoder'


def family_of(name):
    return 'swin' if 'swin' in name else 'resnet'


@pytest.fixture(scope='module')
def arrays():
    return plain_weights.file_arrays('swin_small')


@pytest.fixture(scope='module')
def params(arrays):
    return to_flax(arrays, HUGGING_FACE['swin'])


def write_folder(folder, arrays, name='swin_small', **changes):
    """A folder as transformers writes it, with changed fields of config.json."""
    folder.mkdir(exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(CONFIGS[name] | changes))
    safetensors.numpy.save_file(arrays, folder / 'model.safetensors')
    return folder


def assert_same_bits(a, b):
    a, b = (flatten_dict(dict(x), sep='/') for x in (a, b))
    assert a.keys() == b.keys()
    for key in a:
        assert np.asarray(a[key]).dtype == np.asarray(b[key]).dtype, key
        assert np.asarray(a[key]).tobytes() == np.asarray(b[key]).tobytes(), key


@pytest.mark.parametrize('name', ['swin_small', pytest.param('resnet50', marks=pytest.mark.slow)])
def test_a_written_folder_has_the_names_shapes_and_settings_of_transformers(tmp_path, name):
    arrays = plain_weights.file_arrays(name)
    params = to_flax(arrays, HUGGING_FACE[family_of(name)])
    hugging_face.write(tmp_path / 'out', params, NAMES)
    written = safetensors.numpy.load_file(tmp_path / 'out' / 'model.safetensors')
    assert {key: x.shape for key, x in written.items()} == plain_weights.file_names(name)
    for key, value in written.items():
        if 'layernorm.' not in key.removeprefix(f'{ENCODER}.swin'):
            assert value.tobytes() == arrays[key].tobytes(), key
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    for field, value in config.items():
        if field not in ('backbone_config', 'label2id'):
            assert CONFIGS[name][field] == value, field
    for field, value in config['backbone_config'].items():
        if field != 'drop_path_rate':
            assert CONFIGS[name]['backbone_config'][field] == value, field
    again = pretrained.read(tmp_path / 'out')
    assert_same_bits(again.params, params)
    assert again.image_sides == {'short_side': 800, 'max_side': 1333}
    config['backbone_config']['depths'] = [3, 4, 23, 3]
    (tmp_path / 'out' / 'config.json').write_text(json.dumps(config))
    message = r'depths of the backbone is \(3, 4, 23, 3\) there and \('
    with pytest.raises(ValueError, match=message):
        pretrained.read(tmp_path / 'out')


@pytest.mark.parametrize('kind', ['safetensors', pytest.param('bin', marks=pytest.mark.slow)])
def test_a_folder_of_transformers_is_read(tmp_path, arrays, params, kind):
    folder = write_folder(tmp_path / 'model', arrays)
    if kind == 'bin':
        (folder / 'model.safetensors').unlink()
        tensors, storages = torch_files.tensors(arrays)
        torch_files.write(folder / 'pytorch_model.bin', tensors, storages)
    assert pretrained.is_pretrained(folder)
    for path in (folder, hugging_face.weights_file(folder)):
        model = pretrained.read(path)
        assert_same_bits(model.params, params)
        assert model.settings == dict(backbone='swin_small', **plain_weights.SMALL, **PLAIN)
        assert (model.num_classes, model.class_names) == (plain_weights.NUM_CLASSES, NAMES)
        assert model.image_sides == {}


def test_the_class_order_of_transformers_is_kept(tmp_path, arrays):
    labels = {str(i): f'name {i}' for i in reversed(range(plain_weights.NUM_CLASSES))}
    model = pretrained.read(write_folder(tmp_path / 'model', arrays, id2label=labels))
    assert model.class_names == tuple(f'name {i}' for i in range(plain_weights.NUM_CLASSES))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'num_queries': 100}, 'num_queries is 100 there and 10 in the weights; download both'),
        ({'decoder_layers': 10}, 'decoder_layers is 10 there and 4 in the weights'),
        ({'pre_norm': True}, 'pre_norm is True, but this network has only False'),
        ({'model_type': 'detr'}, "model_type='detr'; give the folder of a 'mask2former'"),
        ({'id2label': {'0': 'a'}}, 'id2label names 1 classes, but the weights have 7'),
        (
            {'backbone_config': {'model_type': 'swin', 'window_size': 7}},
            'window_size of the backbone is 7 there and 4 in the weights',
        ),
        (
            {'backbone_config': {'model_type': 'resnet'}},
            'model_type of the backbone is resnet there and swin in the weights',
        ),
        (
            {'backbone_config': {'model_type': 'focalnet'}},
            "describes the backbone 'focalnet'; give a model with one of resnet, swin",
        ),
    ],
)
def test_a_config_that_does_not_describe_its_weights_is_an_error(
    tmp_path, arrays, changes, message
):
    with pytest.raises(ValueError, match=message) as error:
        pretrained.read(write_folder(tmp_path / 'model', arrays, **changes))
    assert 'config.json' in str(error.value) and '\n' not in str(error.value)


def test_damaged_incomplete_and_unknown_weights_are_errors(tmp_path, arrays):
    folder = write_folder(tmp_path / 'model', arrays)
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match='model.safetensors is damaged'):
        pretrained.read(folder)
    path.unlink()
    with pytest.raises(MissingFileError, match='holds no weights; download model.safetensors'):
        pretrained.read(folder)
    changed = dict(arrays)
    changed['class_predictor.scale'] = changed.pop('class_predictor.bias')
    message = '1 published keys are missing: class_predictor.bias; .*: class_predictor.scale;'
    with pytest.raises(ValueError, match=message):
        pretrained.read(write_folder(folder, changed))
    changed = arrays | {'class_predictor.weight': np.ones((8, 60), np.float32)}
    with pytest.raises(ValueError, match=r'class_head/dense/kernel has shape \(60, 8\)'):
        pretrained.read(write_folder(folder, changed))


@pytest.mark.parametrize('version', ['new', 'old'])
def test_files_of_detectron2_are_read_and_written_with_the_same_bits(tmp_path, params, version):
    state = to_torch(params, names.MASK2FORMER['swin'])
    assert 'backbone.layers.1.blocks.0.attn.qkv.weight' in state
    stored = state | {
        'criterion.empty_weight': np.ones(8, np.float32),
        'backbone.layers.0.blocks.0.attn.relative_position_index': np.ones((16, 16), np.int64),
    }
    if version == 'old':
        stored = {
            key.replace('.pixel_decoder.', '.').replace('query_feat', 'static_query'): value
            for key, value in stored.items()
        }
    path = tmp_path / 'model_final.pkl'
    path.write_bytes(pickle.dumps({'model': stored, '__author__': 'third_party'}))
    model = pretrained.read(path)
    assert_same_bits(model.params, params)
    assert model.settings == dict(backbone='swin_small', **plain_weights.SMALL, **PLAIN)
    assert model.class_names is None
    assert_same_bits(to_torch(model.params, names.MASK2FORMER['swin']), state)


def test_a_pixel_decoder_twice_in_a_name_is_an_error(tmp_path, params):
    state = to_torch(params, names.MASK2FORMER['swin'])
    doubled = {key.replace('decoder.', 'decoder.pixel_decoder.', 1): x for key, x in state.items()}
    state_dicts.write_state(tmp_path / 'x.pth', doubled)
    with pytest.raises(ValueError, match='x.pth: .*have no counterpart: .*pixel_decoder.pixel'):
        pretrained.read(tmp_path / 'x.pth')


def imagenet_state(params, kind):
    """The backbone as a classifier file of another library."""
    state = to_torch({'swin': params['swin']}, names.BACKBONE['swin'])
    renamed = {
        'norm.weight': np.ones(256, np.float32),
        'head.weight': np.ones((9, 256), np.float32),
    }
    for key, value in state.items():
        key = key.removeprefix('backbone.')
        if key.startswith('norm'):
            continue  # Classifiers have no norms of the four maps.
        if kind == 'timm' and '.downsample.' in key:
            key = f'layers.{int(key[7]) + 1}{key[8:]}'
        if kind == 'torchvision':
            key = key.replace('patch_embed.proj', 'features.0.0').replace(
                'patch_embed.norm', 'features.0.2'
            )
            if key.startswith('layers.'):
                stage, rest = int(key[7]), key[9:]
                number = 2 * stage + (2 if rest.startswith('downsample') else 1)
                key = f'features.{number}.{rest}'.replace('downsample.', '').replace('blocks.', '')
            key = key.replace('mlp.fc1', 'mlp.0').replace('mlp.fc2', 'mlp.3')
        renamed[key] = value
    return renamed


@pytest.mark.parametrize('kind', ['original', 'timm', 'torchvision'])
def test_imagenet_weights_of_a_swin_are_read(tmp_path, params, kind):
    path = tmp_path / 'swin.pth'
    tensors, storages = torch_files.tensors(imagenet_state(params, kind))
    torch_files.write(path, {'model': tensors}, storages)
    backbone = state_dicts.read_backbone(path)['swin']
    expected = dict(params['swin'])
    for stage in range(1, 5):
        norm = expected[f'output_norm{stage}']
        expected[f'output_norm{stage}'] = {
            'scale': np.ones_like(norm['scale']), 'bias': np.zeros_like(norm['bias'])
        }  # fmt: skip
    assert_same_bits(backbone, expected)


@pytest.mark.parametrize(
    'name',
    [
        'swin_t',
        pytest.param('resnet101', marks=pytest.mark.slow),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ('swin_s', 'swin_b', 'swin_l')),
    ],
)
def test_every_published_backbone_has_a_complete_table(name):
    model = Mask2Former(19, backbone=name, **plain_weights.SMALL, **PLAIN)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)['params']
    params = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
    for layouts in (HUGGING_FACE, names.MASK2FORMER):
        layout = layouts[family_of(name)]
        again = to_flax(to_torch(params, layout), layout)
        assert jax.tree.map(np.shape, again) == jax.tree.map(np.shape, params)


def test_the_settings_of_another_network_are_an_error(params):
    heads = {name: x for name, x in params['heads'].items() if name != 'class_head'}
    with pytest.raises(ValueError, match='heads/class_head/dense/bias is missing, so it'):
        plain_settings(params | {'heads': heads})
