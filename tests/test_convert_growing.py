"""Tests of `simcis_jax.convert` for models in which the weights of a stage have their own names."""

import dataclasses
import json
import shutil
from pathlib import Path

import flax.traverse_util
import jax
import numpy as np
import pytest
import recorded_decoder
import recorded_eclipse
from random_params import random_params
from shrunken_params import encoder
from tiny import plain_config

from simcis_jax import convert, main
from simcis_jax.continual.stages import make_stages
from simcis_jax.data import open_source
from simcis_jax.data.category_list import category_entries
from simcis_jax.port import growing_models, state_dicts
from simcis_jax.port.names import PREDICTOR
from simcis_jax.runtime import command
from simcis_jax.settings.method_choice import resolve
from simcis_jax.settings.validated import from_config
from simcis_jax.training import inherited_stage
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.workdir import Workdir
from simcis_jax.types import Categories

GOLDEN = Path(__file__).parent / 'methods' / 'golden' / 'balconpas.npz'
SHAPES = open_source('shapes', 'val', num_images=1).categories
CLASSES = {'rows': (3, 2, 2), 'prompts': (7, 3, 3)}


@pytest.fixture(scope='module')
def states():
    """The recorded decoders with class rows and with prompts, and a tiny encoder."""
    rows = recorded_decoder.state_of(dict(np.load(GOLDEN)))
    return {'rows': rows | encoder()[1], 'prompts': recorded_eclipse.state_of(3)}


@pytest.fixture(scope='module')
def converted(states, tmp_path_factory):
    """A folder with the files of both kinds and the converted stages."""
    folder = tmp_path_factory.mktemp('converted')
    for kind, state in states.items():
        state_dicts.write_state(folder / f'{kind}.pth', state)
        convert.import_model(folder / f'{kind}.pth', folder / kind / 'stage_3')
    return folder


@pytest.fixture
def folder(converted, tmp_path, monkeypatch):
    """A copy of that folder, as the current one."""
    monkeypatch.chdir(shutil.copytree(converted, tmp_path / 'copy'))
    return tmp_path / 'copy'


def run(*arguments):
    convert.main([str(argument) for argument in arguments])


def read_checkpoint(folder):
    with StageCheckpoints(folder / 'checkpoints') as checkpoints:
        return jax.tree.map(np.asarray, checkpoints.read('params'))


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype and a[key].shape == b[key].shape, key
        assert a[key].tobytes() == b[key].tobytes(), key


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize(
    ('kind', 'flags', 'words'),
    [
        ('rows', ['--classes=3,2,2'], 'resnet50, 7 classes in 3 stages (3,2,2);'),
        ('prompts', [], 'resnet50, 13 classes in 3 stages (7,3,3), 5 prompts a stage;'),
    ],
)
def test_import_then_export_gives_the_same_bits(
    states, tmp_path, capsys, kind, flags, words, suffix
):
    source, back = tmp_path / f'model_final{suffix}', tmp_path / f'back{suffix}'
    state_dicts.write_state(source, states[kind])
    run('import', f'--source={source}', f'--out={tmp_path}/stage_3')
    assert words in capsys.readouterr().out
    run('export', f'--checkpoint={tmp_path}/stage_3', f'--out={back}', *flags)
    assert_same_bits(state_dicts.read_state(back), states[kind])


def test_buffers_in_a_file_are_no_weights(states, tmp_path):
    """Batch norms that were trained have buffers, which the published code does not need."""
    buffers = {
        'criterion.empty_weight': np.ones(8, np.float32),
        'backbone.stem.conv1.norm.num_batches_tracked': np.zeros(1, np.float32),
    }
    state_dicts.write_state(tmp_path / 'x.pth', states['rows'] | buffers)
    convert.import_model(tmp_path / 'x.pth', tmp_path / 'stage_3')
    assert (tmp_path / 'stage_3').is_dir()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['import', '--source=rows.pth', '--out=x/stage_2'], 'was trained on 3 stages, so --out='),
        (['import', '--source=prompts.pth', '--out=x/stage_4'], 'must end in stage_3.'),
        (['import', '--source=prompts.pth', '--out=x'], 'must end in stage_N'),
        (['import', '--source=rows.pth', '--out=x/stage_3', '--bank=b'], 'leave out --bank.'),
        (
            ['export', '--checkpoint=rows/stage_3', '--out=x.pth', '--classes=3,2'],
            '--classes=3,2 must be 3 numbers, the classes of each stage up to ',
        ),
        (
            ['export', '--checkpoint=rows/stage_3', '--out=x.pth', '--classes=3,2,3'],
            'stages of 3, 2, 3 classes do not fit a class head of 7 classes.',
        ),
        (
            ['export', '--checkpoint=prompts/stage_3', '--out=x.pth', '--classes=6,3,3'],
            'stages of 6, 3, 3 classes do not fit a network with prompts for stages of 7, 3, 3.',
        ),
        (
            ['export', '--checkpoint=rows/stage_3', '--out=x', '--classes=3,2,2'],
            '--out=x must be a file with --classes, not a folder.',
        ),
        (['export', '--checkpoint=prompts/stage_3', '--out=x'], 'not the original Mask2Former'),
        (
            ['export', '--checkpoint=rows/stage_3', '--out=x.pth', '--classes=3,a'],
            "'3,a' must be numbers such as 100,10,10",
        ),
    ],
)
def test_invalid_input_is_an_error_and_leaves_no_output(folder, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert message in capsys.readouterr().err
    assert not Path('x').exists() and not Path('x.pth').exists()


def test_a_missing_name_is_an_error_and_leaves_no_output(states, tmp_path):
    for kind, name in (('rows', 'class_embeds.1.bias'), ('prompts', 'prompt_feat.0.weight')):
        state = {key: x for key, x in states[kind].items() if not key.endswith(name)}
        state_dicts.write_state(tmp_path / 'x.pth', state)
        with pytest.raises(ValueError, match=f'x.pth: 1 published keys are missing: .*{name}; onl'):
            convert.import_model(tmp_path / 'x.pth', tmp_path / 'stage_3')
        assert not (tmp_path / 'stage_3').exists()


def write_run(folder, method, base, increment, **changes):
    """Makes a folder that of a run, with as many classes as the recorded decoder has."""
    number = base + 2 * increment
    protocol = {'protocol.base': base, 'protocol.increment': increment}
    config = plain_config(method, **protocol | changes).to_dict()
    columns = {name: (column * 2)[:number] for name, column in dataclasses.asdict(SHAPES).items()}
    columns |= {'ids': tuple(range(1, number + 1)), 'names': tuple(map(str, range(number)))}
    entries = category_entries(Categories(**columns))
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'categories.json').write_text(json.dumps(entries))


def test_the_stages_of_a_run_are_those_of_its_config(states, folder):
    write_run(folder / 'rows', 'balconpas', 3, 2)
    with pytest.raises(ValueError, match=r'--classes=2,3,2 must be 3,2,2, the classes of each'):
        convert.export_model('rows/stage_3', 'x.pth', classes=(2, 3, 2))
    convert.export_model('rows/stage_3', 'x.pth', classes=(3, 2, 2))
    assert_same_bits(state_dicts.read_state('x.pth'), states['rows'])
    write_run(folder / 'prompts', 'eclipse', 7, 3)
    convert.export_model('prompts/stage_3', 'y.pth')
    assert_same_bits(state_dicts.read_state('y.pth'), states['prompts'])


def test_class_rows_of_a_run_in_another_order_are_an_error(folder):
    write_run(folder / 'rows', 'balconpas', 3, 2, **{'protocol.order': 'descending'})
    with pytest.raises(ValueError, match="learned the classes in the order 'descending'; only 'or"):
        convert.export_model('rows/stage_3', 'x.pth', classes=(3, 2, 2))


# Published settings


@pytest.mark.parametrize(
    ('name', 'classes', 'expected'),
    [
        (
            'ade_cps_balconpas_100_10',
            (100, 10, 10, 10, 10, 10),
            {
                'query_embed.weight': (100, 256),
                'class_embeds.0.weight': (101, 256),
                'class_embeds.5.bias': (10,),
            },
        ),
        (
            'ade_cps_eclipse_100_5',
            (100, *[5] * 10),
            {
                'query_embed.weight': (100, 256),
                'prompt_feat.9.weight': (10, 256),
                'prompt_embed.9.8.weight': (10, 256),
                'prompt_mask_embed.9.layers.2.weight': (256, 256),
                'class_embed.cls.0.layers.2.weight': (1, 256),
                'class_embed.cls.1.layers.2.weight': (100, 256),
                'class_embed.cls.11.layers.2.bias': (5,),
            },
        ),
    ],
)
def test_the_network_of_a_published_setting_has_a_file(name, classes, expected):
    values = from_config(resolve(command.read_config(name, []).to_dict(), ()))
    stages = values.protocol.stages(150)
    model = values.method.make_model(stages, values.model)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)['params']
    params = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
    state = growing_models.write(params, classes)
    assert {key: state[f'{PREDICTOR}.{key}'].shape for key in expected} == expected
    again = growing_models.read('x.pth', state)
    assert again.classes == tuple(len(stage.current) for stage in stages) == classes
    assert jax.tree.map(np.shape, again.params) == jax.tree.map(np.shape, params)


# Runs

METHODS = {'rows': 'balconpas', 'prompts': 'eclipse'}
RUN = (8, 2, 2)  # The classes of its stages.


def published_run(kind, number, backbone):
    """The config of a run, what makes its parameters, and published weights of a stage.

    The backbone 'small' has no published weights; parameters are those of the tiny encoder instead.
    """
    config = plain_config(METHODS[kind], **{'model.backbone': backbone})
    values = from_config(config.to_dict())
    stages = make_stages(12, base=8, increment=2)
    image = np.zeros((1, values.data.size, values.data.size, 3), np.uint8)

    def initialize(num_classes, seed=1):
        model = values.method.make_model(stages, values.model).clone(num_classes=num_classes)
        params = random_params(model.init, image, seed=seed, scale=0.05)['params']
        return (params | encoder()[0] if backbone == 'small' else params), ()

    params, _ = initialize(sum(RUN[:number]), seed=0)
    return config, stages, initialize, growing_models.write(params, RUN[:number])


@pytest.mark.parametrize('number', [1, 2, 3])
@pytest.mark.parametrize('kind', METHODS)
def test_a_run_starts_from_a_converted_stage(tmp_path, kind, number):
    """It has room for the classes to come, and what was converted stays."""
    _, stages, initialize, state = published_run(kind, number, 'small')
    state_dicts.write_state(tmp_path / 'x.pth', state)
    convert.import_model(tmp_path / 'x.pth', tmp_path / f'stage_{number}')
    path = str(tmp_path / f'stage_{number}')
    source = inherited_stage.finished_stage(path, stages, SHAPES, initialize)
    workdir = Workdir(tmp_path / 'run', {})
    inherited_stage.inherit(workdir, source, 12, initialize)
    inherited = read_checkpoint(workdir.stage(number).root)
    assert_same_bits(growing_models.write(inherited, RUN[:number]), state)
    flat, expected = (
        flax.traverse_util.flatten_dict(x, sep='/') for x in (inherited, initialize(12)[0])
    )
    assert {path: x.shape for path, x in flat.items()} == {
        path: x.shape for path, x in expected.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'number'), [('rows', 3), ('prompts', 1), ('prompts', 3)])
def test_a_converted_stage_is_evaluated(tmp_path, kind, number):
    config, *_, state = published_run(kind, number, 'resnet50')
    state_dicts.write_state(tmp_path / 'x.pth', state)
    convert.import_model(tmp_path / 'x.pth', tmp_path / f'stage_{number}')
    config.training.init_from = str(tmp_path / f'stage_{number}')
    results = main.run(config, str(tmp_path / 'run'), mode='evaluate')
    assert [report['stage'] for report in results['stages']] == [number]
    convert.export_model(
        tmp_path / 'run' / f'stage_{number}', tmp_path / 'y.pth', classes=RUN[:number]
    )
    assert_same_bits(state_dicts.read_state(tmp_path / 'y.pth'), state)
