"""Tests of `simcis_jax.convert`, on models with all parameter names but tiny arrays."""

import json
import pickle
import subprocess
import sys

import flax.traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy
from random_params import save_stage_2
from shrunken_params import shrunken_params

from simcis_jax import convert
from simcis_jax.errors import InputError
from simcis_jax.port import pickles, published_bank, state_dicts, torch_files
from simcis_jax.port.names import BACKBONE
from simcis_jax.port.torch_weights import to_flax, to_torch
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.initial_weights import with_backbone

NUM_CLASSES, WIDTH, BANK_SIZE = 7, 4, 5


def params_of(backbone):
    return shrunken_params(NUM_CLASSES, backbone, WIDTH)


@pytest.fixture(scope='module')
def state():
    return to_torch(params_of('resnet50'))


@pytest.fixture
def bank():
    rng = np.random.default_rng(1)
    written = np.array([0, 2, 5, 0, 5, 1, 0], np.int32)
    queries = rng.normal(size=(NUM_CLASSES, BANK_SIZE, WIDTH)).astype(np.float32)
    queries[np.arange(BANK_SIZE) >= written[:, None]] = 0
    return queries, written


def read_checkpoint(folder, item='params'):
    with StageCheckpoints(folder / 'checkpoints') as checkpoints:
        return jax.tree.map(np.asarray, checkpoints.read(item))


def assert_same_bits(a, b):
    a, b = (flax.traverse_util.flatten_dict(dict(x), sep='/') for x in (a, b))
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype and a[key].shape == b[key].shape, key
        assert a[key].tobytes() == b[key].tobytes(), key


def run(*arguments):
    convert.main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    'backbone, suffix',
    [
        ('resnet50', '.pth'),
        pytest.param('resnet50', '.safetensors', marks=pytest.mark.slow),
        pytest.param('resnet101', '.pth', marks=pytest.mark.slow),
        pytest.param('resnet101', '.safetensors', marks=pytest.mark.slow),
    ],
)
def test_import_then_export_of_a_model_gives_the_same_bits(tmp_path, backbone, suffix, capsys):
    params = params_of(backbone)
    state = to_torch(params)
    source, back = tmp_path / f'model_final{suffix}', tmp_path / f'back{suffix}'
    state_dicts.write_state(source, state)
    run('import', f'--source={source}', f'--out={tmp_path}/stage_1')
    assert f'{backbone}, 7 classes' in capsys.readouterr().out
    assert_same_bits(read_checkpoint(tmp_path / 'stage_1'), params)
    run('export', f'--checkpoint={tmp_path}/stage_1', f'--out={back}')
    assert_same_bits(state_dicts.read_state(back), state)


def test_import_then_export_of_bank_and_counts_gives_the_same_bits(tmp_path, state, bank):
    state_dicts.write_state(tmp_path / 'model.pth', state)
    published_bank.write_bank(tmp_path / 'fake_query.pkl', *bank)
    counts = json.dumps([0.0, 3.0, 5.0, 0.0, 1.0, 0.0, 0.0])
    (tmp_path / 'psd_distribution.json').write_text(counts)
    run(
        'import',
        f'--source={tmp_path}/model.pth',
        f'--bank={tmp_path}/fake_query.pkl',
        f'--counts={tmp_path}/psd_distribution.json',
        f'--out={tmp_path}/stage_2',
    )
    memory = read_checkpoint(tmp_path / 'stage_2', 'memory')
    assert_same_bits(
        memory, {'queries': bank[0], 'written': bank[1], 'counts': np.float32(json.loads(counts))}
    )
    run(
        'export',
        f'--checkpoint={tmp_path}/stage_2',
        f'--out={tmp_path}/model2.pth',
        f'--bank={tmp_path}/bank2.pkl',
        f'--counts={tmp_path}/counts2.json',
    )
    assert (tmp_path / 'counts2.json').read_text() == counts
    for again, before in zip(
        published_bank.read_bank(tmp_path / 'bank2.pkl', NUM_CLASSES), bank, strict=True
    ):
        assert again.tobytes() == before.tobytes()


def test_counts_without_a_bank_create_an_empty_bank(tmp_path, state):
    state_dicts.write_state(tmp_path / 'model.pth', state)
    (tmp_path / 'counts.json').write_text(json.dumps([2] * NUM_CLASSES))
    convert.import_model(
        tmp_path / 'model.pth', tmp_path / 'stage_1', counts=tmp_path / 'counts.json'
    )
    memory = read_checkpoint(tmp_path / 'stage_1', 'memory')
    assert memory['queries'].shape == (NUM_CLASSES, 80, WIDTH)
    assert memory['written'].sum() == 0 and memory['counts'].tolist() == [2] * NUM_CLASSES


def test_an_exported_file_has_the_module_versions_that_the_published_code_needs(tmp_path, state):
    state_dicts.write_state(tmp_path / 'x.pth', state)
    seen = []

    class Model(dict):
        def __setstate__(self, attributes):
            seen.append(attributes['_metadata'])

    allowed = {'collections.OrderedDict': Model}
    model = torch_files.read(tmp_path / 'x.pth', lambda top: top['model'], allowed)
    assert model.keys() == state.keys()
    (versions,) = seen
    assert versions['sem_seg_head'] == versions['sem_seg_head.predictor'] == {'version': 2}
    assert versions['backbone.res4.3.conv2.norm'] == {'version': 3}
    assert versions['sem_seg_head.pixel_decoder.adapter_1.norm'] == {'version': 1}
    assert versions[''] == {'version': 1}
    modules = {key.rpartition('.')[0] for key in state}
    assert modules < versions.keys()


def test_a_state_dict_is_read_bare_or_inside_a_whole_checkpoint(tmp_path, state):
    arrays, storages = torch_files.tensors(state)
    for name, top in (
        ('bare', arrays),
        ('full', {'model': arrays, 'trainer': {'hooks': [1.5, None]}, 'iteration': 9}),
    ):
        torch_files.write(tmp_path / f'{name}.pth', top, storages)
        assert_same_bits(state_dicts.read_state(tmp_path / f'{name}.pth'), state)


def imagenet_files(state):
    """The backbone with the names of torchvision (and timm) and of detectron2."""
    detectron2, torchvision = {}, {}
    for key, value in state.items():
        if key.startswith('backbone.'):
            key = key.removeprefix('backbone.')
            detectron2[key] = value
            parts = key.split('.')
            if parts[0] == 'stem':
                name = ['bn1' if 'norm' in parts else 'conv1', parts[-1]]
            elif parts[2] == 'shortcut':
                name = ['downsample', '1' if 'norm' in parts else '0', parts[-1]]
            else:
                name = [parts[2].replace('conv', 'bn' if 'norm' in parts else 'conv'), parts[-1]]
            if parts[0] != 'stem':
                name = [f'layer{int(parts[0][3]) - 1}', parts[1], *name]
            torchvision['.'.join(name)] = value
    fc = {'fc.weight': np.ones((3, 4), np.float32), 'fc.bias': np.ones(3, np.float32)}
    torchvision |= fc | {'bn1.num_batches_tracked': np.int64(3)[None]}
    detectron2 |= {f'stem.{key}': value for key, value in fc.items()}
    return torchvision, detectron2


def write_pickle(path, state):
    path.write_bytes(pickle.dumps({'model': state, 'matching_heuristics': True}))


@pytest.mark.parametrize('kind', ['torchvision', 'timm', 'detectron2', 'published'])
def test_a_pretrained_backbone_can_be_imported(tmp_path, state, kind):
    torchvision, detectron2 = imagenet_files(state)
    assert {'bn1.running_var', 'layer3.5.conv2.weight', 'layer2.0.downsample.1.bias'} < {
        *torchvision
    }
    path = tmp_path / 'weights.pkl'
    if kind == 'torchvision':
        floats = {key: x for key, x in torchvision.items() if x.dtype == np.float32}
        path = tmp_path / 'weights.pth'
        arrays, storages = torch_files.tensors(floats)
        torch_files.write(path, arrays, storages)
    elif kind == 'timm':
        path = tmp_path / 'weights.safetensors'
        safetensors.numpy.save_file(torchvision, path)
    else:
        write_pickle(path, detectron2 if kind == 'detectron2' else state)
    expected = to_flax(state)['resnet']
    assert_same_bits(state_dicts.read_backbone(path), {'resnet': expected})
    if kind != 'published':
        usage = convert.import_model(path, tmp_path / 'imagenet')
        assert 'training.init_backbone' in usage
        assert_same_bits(read_checkpoint(tmp_path / 'imagenet'), {'resnet': expected})


def test_pretrained_weights_replace_only_the_backbone(tmp_path, state):
    write_pickle(tmp_path / 'R-50.pkl', imagenet_files(state)[1])
    expected = to_flax(state)['resnet']
    params = {'resnet': jax.tree.map(np.zeros_like, expected), 'heads': {'a': np.ones(2)}}
    begun = with_backbone(params, str(tmp_path / 'R-50.pkl'))
    assert_same_bits(begun, {'resnet': expected, 'heads': params['heads']})


def test_missing_backbone_keys_are_named(tmp_path, state):
    torchvision, _ = imagenet_files(state)
    del torchvision['layer3.5.conv2.weight']
    safetensors.numpy.save_file(torchvision, tmp_path / 'x.safetensors')
    with pytest.raises(ValueError, match=r'1 published keys are missing: backbone.res4.5.conv2.w'):
        state_dicts.read_backbone(tmp_path / 'x.safetensors')


def test_a_resnet_of_another_depth_is_an_error(tmp_path, state):
    deeper = {key: x for key, x in state.items() if key.startswith('backbone.')}
    deeper |= {
        key.replace('res4.5', f'res4.{i}'): x
        for i in range(6, 36)
        for key, x in deeper.items()
        if '.res4.5.' in key
    }
    assert to_flax(deeper, BACKBONE['resnet'])
    state_dicts.write_state(tmp_path / 'x.pth', deeper)
    with pytest.raises(
        ValueError, match=r'\(3, 4, 36, 3\) blocks .* none of the backbones resnet50, resnet101'
    ):
        convert.import_model(tmp_path / 'x.pth', tmp_path / 'out')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['import', '--source=nowhere.pth', '--out=stage_1'], 'nowhere.pth'),
        (['import', '--source=nowhere.safetensors', '--out=stage_1'], 'nowhere.safetensors'),
        (['import', '--source=malicious.pth', '--out=stage_1'], 'it uses posix.system'),
        (['import', '--source=text.pth', '--out=stage_1'], 'text.pth cannot be read'),
        (['import', '--source=text.safetensors', '--out=stage_1'], 'text.safetensors is damaged'),
        (['import', '--source=list.pth', '--out=stage_1'], 'list.pth holds no state dict'),
        (['import', '--source=double.pth', '--out=stage_1'], 'a is float64, but weights must be'),
        (['import', '--source=model.pth', '--out=model'], 'must end in stage_N'),
        (['import', '--source=model.pth', '--out=.'], 'exists already'),
        (['import', '--source=model.pth', '--bank=malicious.pth', '--out=stage_1'], 'posix.system'),
        (['export', '--checkpoint=nowhere', '--out=x.pth'], '--checkpoint=nowhere must be'),
        (['export', '--checkpoint=done/stage_1', '--out=x.pt'], 'must end in one of .pth'),
        (
            ['export', '--checkpoint=done/stage_1', '--out=x.pth', '--bank=b'],
            'has no memory of a method; leave out --bank',
        ),
    ],
)
def test_invalid_input_is_a_one_line_error_and_leaves_no_output(
    tmp_path, monkeypatch, capsys, state, arguments, message
):
    monkeypatch.chdir(tmp_path)
    state_dicts.write_state('model.pth', state)
    convert.import_model('model.pth', 'done/stage_1')
    (tmp_path / 'text.pth').write_text('no weights')
    (tmp_path / 'text.safetensors').write_text('no weights')
    torch_files.write('list.pth', [1, 2])
    write_pickle(tmp_path / 'double.pth', {'backbone.a': np.ones(2)})
    command = pickles.Call(pickles.Global('posix', 'system'), ('touch proof',))
    torch_files.write('malicious.pth', {'model': command})
    with pytest.raises(SystemExit):
        run(*arguments)
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / 'stage_1').exists() and not (tmp_path / 'proof').exists()
    assert not (tmp_path / 'x.pth').exists()


@pytest.mark.parametrize(
    ('out', 'words'),
    [('x.pth', '73 parameters are missing: .* only a complete'), ('x', 'not the original Mask2F')],
)
def test_a_model_that_the_published_code_lacks_is_named(tmp_path, out, words):
    save_stage_2(tmp_path, NUM_CLASSES)
    with pytest.raises(InputError, match=f'stage_2: .*{words}'):
        convert.export_model(tmp_path / 'stage_2', tmp_path / out)
    assert not (tmp_path / out).exists()


def test_the_command_does_not_import_pytorch():
    code = 'import simcis_jax.convert, sys; print("torch" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'False'
