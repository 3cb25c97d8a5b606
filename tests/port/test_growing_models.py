"""Weights by the names of the recorded published decoders, and what is not of their kinds."""

from pathlib import Path

import flax.traverse_util
import jax
import numpy as np
import pytest
import recorded_decoder
import recorded_eclipse
from shrunken_params import encoder

from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.port import growing_models, pretrained, state_dicts
from simcis_jax.port.architecture import PLAIN, count_classes
from simcis_jax.port.names import PREDICTOR

GOLDEN = Path(__file__).parents[1] / 'methods' / 'golden'


@pytest.fixture(scope='module')
def rows():
    """The recorded decoder with class rows of three stages, and a tiny encoder."""
    return recorded_decoder.state_of(dict(np.load(GOLDEN / 'balconpas.npz'))) | encoder()[1]


@pytest.fixture(scope='module')
def prompts():
    """The recorded decoder with prompts of two stages, and a tiny encoder."""
    return recorded_eclipse.state_of(3)


def read(state):
    return growing_models.read('x.pth', state)


def shapes_of(tree, sep='.'):
    flat = flax.traverse_util.flatten_dict(tree, sep=sep)
    encoded = ('resnet', 'pixel_decoder')
    return {path: np.shape(x) for path, x in flat.items() if not path.startswith(encoded)}


def shapes_in(model, image_size=64):
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.uint8)
    return shapes_of(jax.eval_shape(model.init, jax.random.key(0), image)['params'])


def assert_same_state(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype and a[key].shape == b[key].shape, key
        assert a[key].tobytes() == b[key].tobytes(), key


def assert_read_then_written_gives_the_same_bits(state, classes):
    model = read(state)
    assert model.classes == classes
    assert_same_state(growing_models.write(model.params, classes), state)
    assert count_classes(shapes_of(model.params)) == sum(classes)


# Class rows


def test_class_rows_then_written_are_the_same_bits(rows):
    assert_read_then_written_gives_the_same_bits(rows, (3, 2, 2))


def test_class_rows_of_one_stage_are_the_same_bits(rows):
    first = {
        key: x for key, x in rows.items() if 'class_embeds.' not in key or '.class_embeds.0' in key
    }
    assert_read_then_written_gives_the_same_bits(first, (3,))


def test_class_rows_make_exactly_the_parameters_of_the_original_mask2former(rows):
    model = Mask2Former(
        7, 'small', num_queries=6, hidden_dim=16, num_heads=2, decoder_layers=3,
        decoder_feedforward=24, encoder_layers=1, **PLAIN,
    )  # fmt: skip
    assert shapes_of(read(rows).params) == shapes_in(model)


def test_no_object_is_the_last_row_of_stage_1_and_the_last_of_all(rows):
    bias = read(rows).params['heads']['class_head']['dense']['bias']
    first, second, third = (rows[f'{PREDICTOR}.class_embeds.{i}.bias'] for i in range(3))
    np.testing.assert_array_equal(bias, [*first[:3], *second, *third, first[3]])


def test_rows_of_classes_to_come_are_left_out(rows):
    written = growing_models.write(read(rows).params, (3, 2))
    third = f'{PREDICTOR}.class_embeds.2.'
    assert_same_state(written, {key: x for key, x in rows.items() if not key.startswith(third)})


@pytest.mark.parametrize('classes', [(3, 2, 3), (3, 0)])
def test_class_rows_that_do_not_fit_are_an_error(rows, classes):
    with pytest.raises(ValueError, match=r'^stages of 3, .* do not fit a class head of 7 classes'):
        growing_models.write(read(rows).params, classes)


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('class_embeds.1.bias', np.zeros(3, np.float32)),
        ('class_embeds.2.weight', np.zeros((2, 15), np.float32)),
        ('class_embeds.0.weight', np.zeros((1, 16), np.float32)),
    ],
)
def test_damaged_class_rows_are_an_error(rows, key, value):
    changed = rows | {f'{PREDICTOR}.{key}': value}
    if key == 'class_embeds.0.weight':
        changed[f'{PREDICTOR}.class_embeds.0.bias'] = value[:, 0]
    with pytest.raises(ValueError, match=rf'x.pth: .*{key[:14]} has .* do not fit a class head'):
        read(changed)


# Prompts


@pytest.mark.parametrize('number', [1, 2, 3])
def test_prompts_then_written_are_the_same_bits(number):
    state = recorded_eclipse.state_of(number)
    assert_read_then_written_gives_the_same_bits(state, (7, 3, 3)[:number])


def test_positions_of_all_layers_then_written_are_the_same_bits():
    state = recorded_eclipse.state_of(3, shallow=True)
    assert_read_then_written_gives_the_same_bits(state, (7, 3, 3))
    assert read(state).params['newest']['prompts']['positions'].shape == (1, 5, 64)


@pytest.mark.parametrize('number', [1, 3])
def test_prompts_make_exactly_the_parameters_of_the_network_with_prompts(number):
    model = recorded_eclipse.network(recorded_eclipse.STAGES[:number], encoder_layers=1)
    assert shapes_of(read(recorded_eclipse.state_of(number)).params) == shapes_in(model)


def test_names_are_those_of_the_recorded_arrays(prompts):
    golden = np.load(GOLDEN / 'eclipse.npz')
    names = [x.partition('/')[2] for x in golden if x.startswith(('init/', 'grad/', 'update/'))]
    names = [x for x in names if '.' in x]
    assert len(names) > 15
    for name in names:
        assert prompts[f'{PREDICTOR}.{name}'].ndim in (1, 2), name


def test_stages_to_come_are_left_out_and_narrow_ones_cut(prompts):
    params = read(prompts).params
    assert_same_state(growing_models.write(params, (7,)), recorded_eclipse.state_of(1))
    cut = growing_models.write(params, (7, 3, 2))
    key = f'{PREDICTOR}.class_embed.cls.3.layers.2.weight'
    np.testing.assert_array_equal(cut.pop(key), prompts[key][:2])


def test_the_newest_prompts_are_those_of_the_last_given_stage(prompts):
    """The checkpoint of stage 2 of a run of three stages has room for a third."""
    params = read(recorded_eclipse.state_of(2)).params
    finished = jax.tree.map(lambda x: np.concatenate([x, x]), params['finished'])
    written = growing_models.write(params | {'finished': finished}, (7, 3))
    assert_same_state(written, recorded_eclipse.state_of(2))


@pytest.mark.parametrize('classes', [(7, 3, 3, 3), (7, 4), (6, 3), (7, 0)])
def test_prompts_that_do_not_fit_are_an_error(prompts, classes):
    message = 'do not fit a network with prompts for stages of 7, 3, 3'
    with pytest.raises(ValueError, match=message):
        growing_models.write(read(prompts).params, classes)


@pytest.mark.parametrize(
    ('key', 'shape'),
    [
        ('class_embed.cls.3.layers.2.bias', (2,)),
        ('prompt_feat.1.weight', (4, 64)),
        ('prompt_embed.0.4.weight', (4, 64)),
    ],
)
def test_later_stages_of_different_sizes_are_an_error(prompts, key, shape):
    with pytest.raises(ValueError, match='x.pth: .* has shape .*, but .* has .*same numbers'):
        read(prompts | {f'{PREDICTOR}.{key}': np.zeros(shape, np.float32)})


# Names


@pytest.mark.parametrize(
    ('kind', 'name'),
    [
        ('rows', 'class_embeds.0.weight'),
        ('rows', 'class_embeds.1.bias'),
        ('rows', 'query_embed.weight'),
        ('prompts', 'query_embed.weight'),
        ('prompts', 'class_embed.cls.0.layers.1.weight'),
        ('prompts', 'class_embed.cls.3.layers.2.bias'),
        ('prompts', 'prompt_feat.1.weight'),
        ('prompts', 'prompt_embed.0.8.weight'),
        ('prompts', 'prompt_mask_embed.0.layers.0.bias'),
    ],
)
def test_a_missing_name_is_an_error(request, kind, name):
    state = dict(request.getfixturevalue(kind))
    del state[f'{PREDICTOR}.{name}']
    with pytest.raises(ValueError, match=f'1 published keys are missing: {PREDICTOR}.{name}; only'):
        read(state)


@pytest.mark.parametrize(
    ('kind', 'name'),
    [
        ('rows', 'class_embed.weight'),
        ('rows', 'class_embeds.99999999999.weight'),
        ('rows', 'class_embeds.0.layers.0.weight'),
        ('prompts', 'prompt_embed.0.9.weight'),
        ('prompts', 'prompt_embed.99999999999.0.weight'),
        ('prompts', 'class_embed.weight'),
        ('prompts', 'prompt_no_object.0.weight'),
    ],
)
def test_an_unknown_name_is_an_error(request, kind, name):
    state = request.getfixturevalue(kind) | {f'{PREDICTOR}.{name}': np.zeros(2, np.float32)}
    message = f'1 published keys have no counterpart: {PREDICTOR}.{name}; only a complete'
    with pytest.raises(ValueError, match=message):
        read(state)


def test_names_of_a_further_stage_are_missing_if_one_is_there(prompts):
    name = f'{PREDICTOR}.prompt_feat.2.weight'
    with pytest.raises(ValueError, match='21 published keys are missing: .*class_embed.cls.4.lay'):
        read(prompts | {name: prompts[name.replace('2', '1')]})


@pytest.mark.parametrize('kind', ['rows', 'prompts'])
def test_a_file_cannot_be_used_without_conversion(request, tmp_path, kind):
    state_dicts.write_state(tmp_path / 'x.pth', request.getfixturevalue(kind))
    with pytest.raises(ValueError, match='with the weights of every stage; convert it with'):
        pretrained.read(tmp_path / 'x.pth')
