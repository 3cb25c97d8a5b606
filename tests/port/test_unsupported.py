"""Tests that unusable files are identified with advice, and that usable ones are accepted."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from shrunken_params import shrunken_params

from simcis_jax import convert
from simcis_jax.port import state_dicts, torch_files, unsupported
from simcis_jax.port.torch_weights import to_torch

PREDICTOR = 'sem_seg_head.predictor'


@pytest.fixture(scope='module')
def state():
    return to_torch(shrunken_params(7, 'resnet50', 4))


def tar():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode='w') as archive:
        archive.addfile(tarfile.TarInfo('model.pth'))
    return content.getvalue()


def zipped(*names):
    content = io.BytesIO()
    with zipfile.ZipFile(content, 'w') as archive:
        for name in names:
            archive.writestr(name, b'x' * 1000)
    return content.getvalue()


LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 205174382\n'
HEADER = b'{"backbone.a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}'
FLOAT8 = len(HEADER).to_bytes(8, 'little') + HEADER + bytes(4)


@pytest.mark.parametrize(
    ('content', 'what'),
    [
        (b'', 'is an empty file; the download has failed'),
        (LFS, 'is a Git LFS pointer, not the weights; run git lfs pull'),
        (b'\n<!DOCTYPE html><html><body>Sign in</body></html>', 'is a web page'),
        (b'<?xml version="1.0"?><Error>AccessDenied</Error>', 'is XML'),
        (b'{"error": "not found"}', 'is JSON text'),
        (b'\x1f\x8b\x08\x00 and more', 'is a compressed archive; unpack it'),
        (tar(), 'is a tar archive; unpack it'),
        (b'\x89HDF\r\n\x1a\n', 'is an HDF5 file'),
        (zipped('a/data.pkl', 'a/data/0')[:-200], r'is truncated or damaged \(.*\); download'),
        (zipped('model.pth'), 'is a zip file, but not one of torch.save; if it is an archive'),
        (zipped('a/data.pkl', 'a/constants.pkl'), 'is a TorchScript model; save the state dict'),
        (safetensors.numpy.save({'a': np.ones(99)})[:-8], 'is damaged or not a .*; download'),
        (FLOAT8, r'has weights of a type that NumPy lacks \(.*\); save them as float32'),
    ],
)
@pytest.mark.parametrize('suffix', ['.pth', '.pkl', '.safetensors'])
def test_other_kinds_of_files_are_identified_by_their_content(tmp_path, content, what, suffix):
    path = tmp_path / f'model{suffix}'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f'model{suffix} {what}') as error:
        convert.import_model(path, tmp_path / 'stage_1')
    assert '\n' not in str(error.value) and not (tmp_path / 'stage_1').exists()


def test_a_git_lfs_pointer_in_place_of_a_bank_is_identified(tmp_path, state):
    (tmp_path / 'fake_query.pkl').write_bytes(LFS)
    state_dicts.write_state(tmp_path / 'model.pth', state)
    with pytest.raises(ValueError, match='fake_query.pkl is a Git LFS pointer'):
        convert.import_model(
            tmp_path / 'model.pth', tmp_path / 'stage_1', bank=tmp_path / 'fake_query.pkl'
        )


def test_the_format_is_recognized_by_the_content(tmp_path, state):
    for written, called in (('.pth', '.safetensors'), ('.safetensors', '.bin')):
        state_dicts.write_state(tmp_path / f'model{written}', state)
        renamed = (tmp_path / f'model{written}').rename(tmp_path / f'renamed{called}')
        assert state_dicts.read_state(renamed).keys() == state.keys()


@pytest.mark.parametrize(
    ('keys', 'name', 'way_out'),
    [
        (
            ['model.pixel_level_module.encoder.embeddings.norm.weight', 'class_predictor.weight',
             'model.pixel_level_module.encoder.layers.0.relative_position_bias_table'],
            'a Mask2Former of Hugging Face', 'give its folder, with config.json',
        ),
        (
            ['backbone.conv1.weight', 'backbone.layer1.0.conv1.weight',
             'panoptic_head.cls_embed.weight'],
            'a model of MMDetection', 'give a model of the published',
        ),
        (['backbone.layer1.0.conv1.weight', 'decode_head.conv_seg.weight'],
         'a model of MMSegmentation', 'give a model'),
        (['blocks.0.attn.qkv.weight', 'norm.weight'], 'a vision transformer',
         'only backbones ResNet-50'),
        (['stages.0.blocks.0.conv_dw.weight'], 'ConvNeXt', 'only backbones ResNet-50'),
        (['conv1.weight', 'layer1.0.conv1.weight', 'layer1.0.conv2.weight', 'fc.weight'],
         'ResNet-18 or -34', 'only backbones ResNet-50'),
        (
            ['backbone.bottom_up.res2.0.conv1.weight', 'backbone.fpn_lateral2.weight',
             'proposal_generator.rpn_head.conv.weight', 'sem_seg_head.p2.0.weight',
             'roi_heads.box_head.fc1.weight'],
            'Panoptic FPN, Mask R-CNN', 'give a model of the published',
        ),
        (['transformer.decoder.layers.0.multihead_attn.in_proj_weight',
          'backbone.0.body.conv1.weight'], 'DETR', 'give a model of the published'),
        (['module.encoder_q.layer1.0.conv1.weight'], 'a model inside DataParallel',
         'save the state dict of model.module'),
        (['backbone.conv1.weight', 'classifier.0.weight'], 'a segmentation model with a ResNet',
         'give a model'),
    ],
)  # fmt: skip
def test_other_models_are_identified(tmp_path, keys, name, way_out):
    numbers = {key: np.ones((2, 2), np.float32) for key in keys}
    safetensors.numpy.save_file(numbers | {'steps': np.ones(1, int)}, tmp_path / 'a.safetensors')
    state_dicts.write_state(tmp_path / 'a.pth', numbers)
    for path in (tmp_path / 'a.safetensors', tmp_path / 'a.pth'):
        with pytest.raises(ValueError, match=f'{path} holds {name}.*; {way_out}'):
            convert.import_model(path, tmp_path / 'stage_1')
        with pytest.raises(ValueError, match=f'{path} holds {name}.*; {way_out}'):
            state_dicts.read_backbone(path)


def test_an_original_mask2former_needs_no_conversion(tmp_path, state):
    plain = {key: x for key, x in state.items() if 'enc_output' not in key}
    plain[f'{PREDICTOR}.query_feat.weight'] = np.ones((100, 4), np.float32)
    path = tmp_path / 'model.pth'
    state_dicts.write_state(path, plain)
    usage = f'use it with --config.training.init_from={path}'
    with pytest.raises(ValueError, match=f'an original Mask2Former, which needs no .*; {usage}'):
        convert.import_model(path, tmp_path / 'stage_1')
    assert state_dicts.read_backbone(path)


def test_missing_and_unknown_keys_are_both_listed(tmp_path, state):
    changed = dict(state)
    changed['sem_seg_head.predictor.extra'] = changed.pop(f'{PREDICTOR}.level_embed.weight')
    state_dicts.write_state(tmp_path / 'model.pth', changed)
    with pytest.raises(ValueError, match=r'model.pth: 1 .* missing: .*level_embed.*: .*extra;'):
        convert.import_model(tmp_path / 'model.pth', tmp_path / 'stage_1')


def test_an_array_with_the_wrong_number_of_axes_is_an_error(tmp_path, state):
    key = 'backbone.stem.conv1.weight'
    state_dicts.write_state(tmp_path / 'model.pth', state | {key: np.ones((2, 3), np.float32)})
    with pytest.raises(ValueError, match=rf'model.pth: {key} has shape \(2, 3\).* 4 axes'):
        convert.import_model(tmp_path / 'model.pth', tmp_path / 'stage_1')


def test_a_published_model_is_not_taken_for_another(state):
    assert unsupported.recognize(state) is None


def test_a_malicious_file_is_rejected_before_its_keys_are_compared(tmp_path):
    harm = torch_files.Call(torch_files.Global('posix', 'system'), ('touch proof',))
    torch_files.write(tmp_path / 'a.pth', {'model': harm, 'panoptic_head.a': 1})
    with pytest.raises(ValueError, match='it uses posix.system'):
        state_dicts.read_state(tmp_path / 'a.pth')
