import dataclasses
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from simcis_jax import data, main
from simcis_jax.errors import InputError
from simcis_jax.evaluation.evaluator import make_tasks
from simcis_jax.methods import METHODS
from simcis_jax.methods.pseudo_label import PseudoLabel
from simcis_jax.methods.simcis import SimCIS
from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.settings import reference
from simcis_jax.settings.declare import Setting
from simcis_jax.settings.keys import (
    DATA_SETS,
    DECLARED,
    GROUPS,
    TASKS,
    EvaluationSettings,
    default_config,
)
from simcis_jax.settings.method_choice import resolve
from simcis_jax.settings.validated import from_config
from simcis_jax.types import Categories

SETTINGS = DECLARED
PLAIN = {'model.head': 'softmax', 'model.boxes': False, 'model.queries': 'learned'}
NETWORK = dict.fromkeys(('mib', 'comformer', 'balconpas', 'eclipse'), PLAIN)  # What they need.


def chosen(key):
    """The changes that choose the method to which a key belongs, if any, and a network for it."""
    _, *method, _ = key.split('.')
    if not method:
        return {}
    return {'method.name': method[0]} | NETWORK.get(method[0], {})


def config_with(changes):
    config = default_config()
    for key, value in changes.items():
        *groups, name = key.split('.')
        target = config
        for group in groups:
            target = target[group]
        target[name] = value
    return config


def faults_of(changes):
    """The lines of the error message; empty if the config is valid."""
    try:
        from_config(config_with(changes))
    except InputError as error:
        return str(error).splitlines()
    return []


NOT_FINITE = [math.nan, math.inf, -math.inf]
WRONG_TYPE = {
    bool: [0, 1, 'True', None],
    str: [0, None, ('text',)],
    int: [True, 1.5, '1', None, *NOT_FINITE],
    float: [True, '1', None, *NOT_FINITE],
    float | None: [True, '1', *NOT_FINITE],
    str | tuple[int, ...]: [7, None, {0: 1}, (True,), (1.5,), ('1',), (-1,)],
}


def refused_values(setting: Setting):
    """Values that each violate one part of a declaration."""
    rule, kind = setting.rule, setting.kind
    is_tuple = typing.get_origin(kind) is tuple
    entry_kind = typing.get_args(kind)[0] if is_tuple else kind
    step = 1 if entry_kind is int else 1e-6
    entries = list(WRONG_TYPE[entry_kind])
    if not isinstance(setting.default, str):
        bounds = (rule.at_least, -step), (rule.above, 0), (rule.at_most, step), (rule.below, 0)
        entries += [bound + outside for bound, outside in bounds if bound is not None]
    if rule.multiple_of:
        entries.append(setting.default + 1)
    if rule.choices:
        entries += ['none of these', '']
    if not is_tuple:
        yield from entries
        return
    yield from ((entry,) * max(1, len(setting.default)) for entry in entries)
    yield from (7, None, {0: 1})
    if rule.choices:
        yield ()
    if rule.rising:
        first, second, *_ = setting.default
        yield (second, first) if second > first else (first + 1, first)


REFUSED = [(key, value) for key, setting in SETTINGS.items() for value in refused_values(setting)]


@pytest.mark.parametrize(('key', 'value'), REFUSED)
def test_a_value_that_violates_its_declaration_is_refused(key, value):
    faults = faults_of(chosen(key) | {key: value})
    assert faults == [f'{key}={value!r} must be {SETTINGS[key].requirement()}.']


@pytest.mark.parametrize('key', [key for key, x in SETTINGS.items() if x.rule.at_least is not None])
def test_the_lower_bound_is_allowed(key):
    least = SETTINGS[key].rule.at_least
    default = SETTINGS[key].default
    if isinstance(default, tuple) or key == 'protocol.order':
        least = (least,) * max(1, len(default) if isinstance(default, tuple) else 1)
    only = f'{key}={least!r} must be {SETTINGS[key].requirement()}.'
    assert only not in faults_of(chosen(key) | {key: least})


@pytest.mark.parametrize(
    ('changes', 'fault'),
    [
        ({'training.base_steps': -5}, 'base_steps=-5 must be a whole number, at least 1.'),
        ({'training.batch_size': 0}, 'training.batch_size=0 must be a whole number, at least 1.'),
        ({'training.batch_size': True}, 'training.batch_size=True must be a whole number'),
        ({'training.seed': -1}, 'training.seed=-1 must be'),
        ({'training.seed': 2**32}, 'training.seed=4294967296 must be'),  # Would act as seed 0.
        ({'method.name': 'sincis'}, "method.name='sincis' must be one of 'finetune', 'pseudo_lab"),
        ({'model.dtype': 'float17'}, "model.dtype='float17' must be one of 'float32', 'bfloat16'."),
        ({'data.scale_range': (2.0, 0.5)}, 'data.scale_range=(2.0, 0.5) must be 2 finite numbers'),
        ({'data.scale_range': (0.0, 1.0)}, 'must be 2 finite numbers, above 0, in rising order.'),
        ({'data.scale_range': (1.0,)}, 'data.scale_range=(1.0,) must be 2 finite numbers'),
        ({'optimizer.milestones': (1.5,)}, 'milestones=(1.5,) must be finite numbers, above 0 and'),
        ({'optimizer.base_learning_rate': math.nan}, 'base_learning_rate=nan must be a finite'),
        ({'evaluation.tasks': ()}, "evaluation.tasks=() must be one or more of 'panoptic', "),
        ({'evaluation.padding': 48}, 'padding=48 must be a whole number, at least 32, a multiple'),
        ({'loss.box': 10**400}, 'must be a finite number, at least 0.'),
        # Relations between values.
        ({'data.max_segments': 101}, 'data.max_segments=101 must be at most model.num_queries=100'),
        ({'data.size': 600}, 'data.size=600 must be a multiple of 32, the coarsest stride of'),
        ({'model.num_heads': 5}, 'model.hidden_dim=256 must be a multiple of model.num_heads=5.'),
        (
            {'evaluation.short_side': 64},
            'must be larger: a square of it has 84 positions to select model.num_queries=100 from',
        ),
        ({'evaluation.max_side': 500}, 'short_side=640 must be at most evaluation.max_side=500.'),
        ({'model.boxes': False}, "model.boxes=False must be True with model.queries='selected'."),
        ({'model.head': 'softmax'}, "model.head='softmax' must be 'sigmoid' with model.queries"),
        ({'model.stochastic_depth': 0.3}, "must be 0 with model.backbone='resnet50', which is no"),
        ({'evaluation.semantic_rule': 'soft_sum', 'evaluation.semantic_resize': 'labels'},
         "evaluation.semantic_resize='labels' must be 'logits' or 'scores' with evaluation.seman"),
    ],
)  # fmt: skip
def test_one_fault_gives_one_line(changes, fault):
    (line,) = faults_of(changes)
    assert fault in line


def test_all_faults_are_reported_at_once():
    lines = faults_of(
        {
            'training.batch_size': 0,
            'training.checkpoint': 5,
            'optimizer.b1': 1.0,
            'data.max_segments': 200,
            'model.num_querys': 5,
        }
    )
    assert len(lines) == 5
    for start in (
        "config key 'training.checkpoint' is unknown; did you mean 'training.",
        "config key 'model.num_querys' is unknown; did you mean 'model.num_qu",
        'training.batch_size=0 must be',
        'optimizer.b1=1.0 must be',
        'data.max_segments=200 must be',
    ):
        assert sum(line.startswith(start) for line in lines) == 1


def test_a_prior_needs_independent_classes():
    plain = {'model.queries': 'learned', 'model.head': 'softmax', 'method.name': 'finetune'}
    (line,) = faults_of(plain | {'model.class_prior': 0.1})
    assert line.startswith("model.class_prior=0.1 must be None with model.head='softmax'")
    assert not faults_of(plain | {'model.boxes': False, 'model.attention_order': 'cross_first'})


def test_relations_of_an_invalid_value_are_not_checked():
    assert len(faults_of({'model.num_queries': 0})) == 1


@pytest.mark.parametrize(
    ('method', 'keys'),
    [('simcis', ['csl_weight', 'num_virtual_queries']), ('pseudo_label', []), ('finetune', [])],
)
def test_learned_queries_exclude_losses_that_need_selected_features(method, keys):
    lines = faults_of({'model.queries': 'learned', 'method.name': method})
    assert [line.split('=')[0] for line in lines] == [f'method.{method}.{key}' for key in keys]


CHOSEN = {
    'finetune': set(), 'pseudo_label': {'pseudo_label'}, 'simcis': {'simcis'}, 'futcr': {'futcr'},
    'mib': {'mib'}, 'plop': {'plop'}, 'comformer': {'comformer'}, 'balconpas': {'balconpas'},
    'eclipse': {'eclipse'},
}  # fmt: skip
# What a method needs of the network, if that is not the default.


@pytest.mark.parametrize('name', METHODS)
def test_a_run_has_the_keys_of_its_method_only(name):
    """And those of a config file for other methods do not matter."""
    changes = {'method.name': name, 'data.size': 320, **NETWORK.get(name, {})}
    config = config_with(changes)
    for other in CHOSEN.keys() - {'finetune', 'mib', 'eclipse', name}:
        config['method'][other]['pseudo_label_score'] = 0.9
    resolved = resolve(config)
    assert set(resolved['method']) == {'name'} | CHOSEN[name]
    assert resolved['data'] == config['data'] and resolved.keys() == config.keys()
    values = from_config(resolved)
    assert values == from_config(config_with(changes))
    assert values.method == METHODS[name]()
    assert resolve(resolved) == resolved


@pytest.mark.parametrize('name', ['finetune', 'pseudo_label', 'futcr'])
def test_a_change_of_a_method_that_is_not_chosen_is_refused(name):
    key = 'method.simcis.csl_weight'
    message = (
        f"^{key} belongs to another method than method.name='{name}', which does not read it; "
        "leave it out, or set method.name='simcis'.$"
    )
    config = config_with({'method.name': name, key: 99.0})
    with pytest.raises(InputError, match=message):
        from_config(config)
    with pytest.raises(InputError, match=message):
        resolve(config, ['training.seed', key])
    assert faults_of({'method.name': name, key: 2.0}) == []  # The default.
    assert faults_of({'method.name': 'simcis', key: 99.0}) == []


def test_methods_do_not_share_a_field_of_the_same_name():
    changes = {'method.name': 'pseudo_label', 'method.pseudo_label.pseudo_label_score': 0.1}
    assert from_config(config_with(changes)).method == PseudoLabel(pseudo_label_score=0.1)
    assert from_config(default_config()).method == SimCIS()


def test_an_unknown_key_of_a_method_is_refused():
    (line,) = faults_of({'method.simcis.csl_wieght': 1.0})
    assert line.startswith("config key 'method.simcis.csl_wieght' is unknown; did you mean 'meth")
    (line,) = faults_of({'method.nothing': {'weight': 1.0}})
    assert line.startswith("config key 'method.nothing' is unknown")


def test_an_unknown_group_is_refused():
    for extra in ({'optimiser': {'clip_norm': 1.0}}, {'optimiser': 3}):
        with pytest.raises(ValueError, match=r"'optimiser.*' is unknown.*optimizer"):
            from_config(default_config() | extra)
    for extra in ({1: 2}, {'data': {1: 2}}):  # Keys of a dict need not be text.
        with pytest.raises(ValueError, match="config key '.*1' is unknown"):
            from_config(extra)


def test_the_defaults_are_the_published_panoptic_setting():
    settings = from_config(default_config())
    assert isinstance(settings.method, SimCIS)
    assert settings.weights.classification == 4.0 and settings.sampling.num_points == 12544
    assert settings.training.base_steps == 160_000 and settings.model['num_queries'] == 100
    assert from_config({}) == settings


def test_values_are_converted_to_the_declared_type():
    settings = from_config(
        config_with(
            {
                'optimizer.clip_norm': 1,
                'optimizer.milestones': [0.5],  # A list, as in JSON.
                'training.seed': np.int64(3),
                'protocol.order': [1, 0],
                'model.class_prior': None,
            }
        )
    )
    assert isinstance(settings.optimizer.clip_norm, float)
    assert settings.optimizer.milestones == (0.5,)
    assert type(settings.training.seed) is int
    assert settings.protocol.order == (1, 0) and settings.model['class_prior'] is None


@pytest.mark.parametrize(
    'argument', [('semantic', 'instance'), ('semantic,instance',), ('semantic, instance,semantic',)]
)
def test_tasks_may_be_written_with_commas(argument):
    settings = from_config(config_with({'evaluation.tasks': argument}))
    assert settings.evaluation.tasks == ('semantic', 'instance')


def test_home_is_expanded_in_paths(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.chdir(tmp_path)
    paths = ('data.root', 'training.init_from', 'training.init_backbone')
    assert paths == tuple(key for key, setting in SETTINGS.items() if setting.rule.path)
    settings = from_config(config_with(dict.fromkeys(paths, '~/a')))
    expected = str(tmp_path / 'home' / 'a')
    training = settings.training
    assert (settings.data.root, training.init_from, training.init_backbone) == (expected,) * 3
    config = tiny_config(**{'data.name': 'coco_panoptic', 'data.root': '~/a'})
    with pytest.raises(OSError, match=f'{expected}.* does not exist'):
        main.run(config, str(tmp_path / 'run'))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('hidden_dim', 'num_heads', 'size', 'fits'),
    [
        (12, 3, 48, True),
        (96, 6, 32, True),
        (62, 2, 32, False),
        (64, 5, 32, False),
        (68, 4, 32, False),
        (12, 3, 40, False),
    ],
)
def test_exactly_the_networks_that_can_be_built_are_allowed(hidden_dim, num_heads, size, fits):
    values = {'backbone': 'small', 'num_queries': 6, 'encoder_layers': 1, 'decoder_layers': 1}
    values |= {'hidden_dim': hidden_dim, 'num_heads': num_heads}
    faults = faults_of(
        {f'model.{key}': value for key, value in values.items()}
        | {'data.size': size, 'data.max_segments': 6}
    )
    assert (not faults) == fits
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
    try:
        jax.eval_shape(Mask2Former(num_classes=3, **values).init, jax.random.key(0), image)
    except Exception:
        assert not fits
    else:
        assert fits


def test_choices_are_the_implemented_data_sets_and_tasks():
    assert set(DATA_SETS) == set(data.SOURCES)
    categories = Categories(('a',), (True,), ((0, 0, 0),))
    assert set(make_tasks(categories, EvaluationSettings(tasks=TASKS))) == set(TASKS)


def test_every_key_of_a_config_is_declared():
    for owners in GROUPS.values():
        for owner in owners:
            names = {field.name for field in dataclasses.fields(owner)}
            # A method sets the kind of the masks.
            others = {'num_classes', 'masks', 'parent', 'name'}
            names -= others if owner is Mask2Former else set()
            assert names <= {key.rpartition('.')[2] for key in SETTINGS}, owner


@pytest.mark.parametrize('key', SETTINGS)
def test_the_reference_lists_every_setting_with_its_description(key):
    setting = SETTINGS[key]
    assert setting.meaning.endswith('.') and len(setting.meaning) > 10
    cells = f'`{key}`', f'`{setting.default!r}`', setting.requirement(), setting.meaning
    rows = reference.markdown().splitlines()
    assert rows.count(f'| {" | ".join(cells)} |') == 1
    assert not any('|' in cell or '\n' in cell for cell in cells)  # They would break the table.
