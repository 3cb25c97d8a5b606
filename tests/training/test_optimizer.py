"""Parameter groups, updates and learning rates equal those of the published optimizer."""

import csv
import functools
import re
from fractions import Fraction

import flax.traverse_util
import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.port.torch_weights import to_flax
from simcis_jax.training.optimizer import (
    OptimizerSettings,
    count_parameters,
    learning_rate,
    make_optimizer,
    parameter_groups,
)


def table(name):
    with open(golden_weights.GOLDEN / f'{name}.tsv') as file:
        return list(csv.DictReader(file, delimiter='\t'))


def groups_of(params):
    return flax.traverse_util.flatten_dict(parameter_groups(params), sep='/')


def test_every_published_parameter_is_in_its_published_group():
    published = {
        row['key']: (
            'backbone' if row['lr_multiplier'] == '0.1' else 'other',
            float(row['weight_decay']) > 0,
        )
        for row in table('param_groups_r50')
    }
    assert len(published) == 361
    # A state dict that holds group numbers instead of weights, converted to our names.
    kinds = sorted(set(published.values()))
    state = {}
    for key, shape in golden_weights.published_shapes().items():
        group = published.get(re.sub(r'\.bbox_embed\.\d\.', '._bbox_embed.', key))
        # Frozen norms are buffers in PyTorch and in no group.
        number = kinds.index(group) if group in kinds else -1
        state[key] = np.broadcast_to(np.int8(number), shape)
    numbers = flax.traverse_util.flatten_dict(to_flax(state), sep='/')
    groups = groups_of(to_flax(state))
    assert numbers.keys() == groups.keys()
    for path, group in groups.items():
        number = int(numbers[path].flat[0])
        assert group == (kinds[number] if number >= 0 else 'frozen'), path


def test_frozen_parameters_count_as_not_trainable():
    params = {
        'conv': {'kernel': np.zeros((3, 3, 4, 8))},
        'norm': {'frozen_scale': np.zeros(8), 'frozen_bias': np.zeros(8)},
    }
    assert count_parameters(params) == (288, 304)


@pytest.mark.parametrize('queries', ['selected', 'learned'])
def test_parameter_groups_of_the_network(queries):
    model = Mask2Former(150, queries=queries)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 96, 96, 3)))
    groups = groups_of(shapes['params'])
    assert groups['resnet/stem/conv/kernel'] == ('backbone', True)
    assert groups['resnet/stem/norm/frozen_scale'] == 'frozen'
    assert groups['pixel_decoder/level_embed'] == ('other', True)  # As published.
    assert groups['level_embedding'] == ('other', False)
    assert groups['heads/norm/scale'] == groups['heads/norm/bias'] == ('other', False)
    assert groups['heads/class_head/dense/bias'] == ('other', True)
    learned = [path for path in groups if path.startswith('learned_queries/')]
    assert bool(learned) == (queries == 'learned')
    assert all(groups[path] == ('other', False) for path in learned)


NAMES = {
    'plain': 'pixel_decoder/level_embed',
    'backbone.weight': 'resnet/stem/kernel',
    'backbone.bias': 'resnet/stem/bias',
    'norm.weight': 'heads/norm/scale',
    'norm.bias': 'heads/norm/bias',
    'emb.weight': 'level_embedding',
    'head.weight': 'heads/class_head/kernel',
    'head.bias': 'heads/class_head/bias',
}


def test_seven_steps_equal_the_published_optimizer():
    golden = golden_weights.load('optim_toy')
    assert set(golden['names']) == set(NAMES)
    settings = OptimizerSettings(milestones=(0.3, 0.5))

    def flat(prefix):
        return {path: jnp.asarray(golden[f'{prefix}/{name}']) for name, path in NAMES.items()}

    nested = functools.partial(flax.traverse_util.unflatten_dict, sep='/')
    before = flat('init')
    optimizer = make_optimizer(nested(before), settings)
    state = optimizer.init(nested(before))
    for step in range(7):
        gradients = nested(flat(f'step{step}/grad'))
        updates, state = jax.jit(optimizer.update)(gradients, state, nested(before))
        updates = flax.traverse_util.flatten_dict(updates, sep='/')
        rate = learning_rate(step, 10, 5e-5, settings)
        after = flat(f'step{step}/param')
        for path, value in after.items():
            # Parameters near 2 are stored to 1e-7; the first steps move them by up to 5e-5.
            np.testing.assert_allclose(
                rate * updates[path], value - before[path], atol=3e-7, err_msg=f'{step} {path}'
            )
        before = after


def test_frozen_parameters_are_not_updated_and_not_in_the_clipped_norm():
    params = {
        'resnet': {'stem': {'norm': {'frozen_scale': jnp.ones(3)}}},
        'heads': {'class_head': {'kernel': jnp.ones(2)}},
    }
    optimizer = make_optimizer(params, OptimizerSettings(weight_decay=0.0))

    def first_moment(frozen_gradient):
        gradients = jax.tree.map(jnp.ones_like, params)
        gradients['resnet']['stem']['norm']['frozen_scale'] *= frozen_gradient
        updates, state = optimizer.update(gradients, optimizer.init(params), params)
        assert not updates['resnet']['stem']['norm']['frozen_scale'].any()
        return optax.tree.get(state, 'mu')['heads']['class_head']['kernel']

    expected = 0.1 * 0.01 / np.sqrt(2) * np.ones(2)  # (1 - b1) * a gradient of norm 0.01.
    np.testing.assert_allclose(first_moment(1.0), expected, rtol=1e-5)
    np.testing.assert_allclose(first_moment(1e6), expected, rtol=1e-5)


def rate_at(step, num_steps, base, **settings):
    return learning_rate(jnp.asarray(step), num_steps, base, OptimizerSettings(**settings))


def published_schedules():
    rows = {}
    for row in table('lr_schedule'):
        rows.setdefault(row['schedule'], []).append(row)
    return {name: x for name, x in rows.items() if not name.endswith('collect')}  # Rate 0.


@pytest.mark.parametrize('name', published_schedules())
def test_learning_rates_equal_the_published_schedule(name):
    rows = published_schedules()[name]
    num_steps = int(rows[0]['max_iter'])
    milestones = tuple(int(step) / num_steps for step in rows[0]['steps'].split(','))
    steps = np.array([int(row['iteration']) for row in rows])
    base = float(rows[0]['base_lr'])
    rates = jax.vmap(lambda step: rate_at(step, num_steps, base, milestones=milestones))(steps)
    np.testing.assert_allclose(rates, [float(row['lr']) for row in rows], rtol=1e-5)


def test_a_milestone_decays_the_first_step_that_reaches_it():
    for fraction in (Fraction(3, 10), Fraction(4, 5), Fraction(17, 20), Fraction(19, 20)):
        lengths = np.array([*range(20, 2000, 20), 40_000, 50_000, 90_000, 160_000, 350_000])
        first = np.array([int(fraction * int(length)) for length in lengths])

        @jax.vmap
        def rates(step, length, fraction=fraction):
            return rate_at(step, length, 1.0, milestones=(float(fraction),))

        np.testing.assert_array_equal(rates(first, lengths), np.float32(0.1))
        np.testing.assert_array_equal(rates(first - 1, lengths), 1.0)


def test_a_milestone_between_two_steps_decays_the_second():
    rates = [float(rate_at(step, 10, 1.0, milestones=(0.85,))) for step in (8, 9)]
    np.testing.assert_allclose(rates, [1.0, 0.1])


def test_warm_up_is_linear_and_off_by_default():
    rates = [float(rate_at(step, 100, 2.0, warmup_steps=4)) for step in range(6)]
    np.testing.assert_allclose(rates, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0])
    assert rate_at(0, 100, 2.0) == 2.0


def test_polynomial_decay_equals_the_published_schedule():
    steps = jnp.array([0, 1, 40_000, 80_000, 159_998, 159_999])
    rates = jax.vmap(lambda step: rate_at(step, 160_000, 1e-4, decay='polynomial'))(steps)
    published = [1e-4, 9.9999437e-5, 7.7188954e-5, 5.3588672e-5, 3.8656185e-9, 2.0715338e-9]
    np.testing.assert_allclose(rates, published, rtol=1e-5)
    assert rate_at(160_000, 160_000, 1e-4, decay='polynomial') == 0


def test_a_swin_transformer_is_the_backbone_and_its_position_biases_do_not_decay():
    block = {
        'attention': {'relative_position_bias': jnp.ones(2), 'query': {'kernel': jnp.ones(2)}},
        'norm1': {'scale': jnp.ones(2)},
    }
    groups = parameter_groups({'swin': {'stage1_0': block}})['swin']['stage1_0']
    assert groups['attention']['relative_position_bias'] == ('backbone', False)
    assert groups['attention']['query']['kernel'] == ('backbone', True)
    assert groups['norm1']['scale'] == ('backbone', False)
