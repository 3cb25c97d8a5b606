"""Every config is complete, and the published settings have the published values."""

import dataclasses
import importlib
from pathlib import Path

import pytest

from simcis_jax.continual.stages import make_stages
from simcis_jax.methods import METHODS
from simcis_jax.settings.method_choice import resolve
from simcis_jax.settings.validated import from_config

CONFIGS = Path(__file__).parent.parent / 'configs'
SHARED = {'common', 'ade', 'plain', 'eclipse'}  # Imported by other configs.
# Of the original Mask2Former, which has no selected queries.
PLAIN = {'ade_panoptic_r50', 'ade_semantic_swin_t', 'coco_panoptic_r50', 'coco_panoptic_swin_t'}
CONTINUAL_PLAIN = {f'ade_cps_plain_100_{increment}' for increment in (5, 10, 50)}
BALCONPAS = {
    f'ade_{task}_balconpas_{protocol}'
    for task in ('cps', 'css')
    for protocol in ('100_5', '100_10', '100_50', '50_50')
}
NEEDS_SOFTMAX = {'mib', 'comformer', 'balconpas', 'eclipse'}  # Methods that need "no object".
NEEDS_SELECTED = {'simcis', 'futcr'}  # Methods with a loss on selected queries.
NAMES = sorted(path.stem for path in CONFIGS.glob('*.py') if path.stem not in SHARED)

# Of ECLIPSE: steps of stage 1 and of later ones, their rate, prompts and deltas.
ECLIPSE = {
    'ade_cps_eclipse_100_5': (160_000, 12_000, 5e-4, 10, (0.4, 0.6)),
    'ade_cps_eclipse_100_10': (160_000, 16_000, 5e-4, 10, (0.4, 0.5)),
    'ade_cps_eclipse_100_50': (160_000, 80_000, 5e-4, 50, (-0.4, -0.6)),
    'ade_cps_eclipse_50_10': (80_000, 24_000, 5e-4, 10, (0.4, 0.5)),
    'ade_cps_eclipse_50_20': (80_000, 32_000, 5e-4, 20, (0.4, 0.5)),
    'ade_cps_eclipse_50_50': (80_000, 120_000, 5e-4, 50, (0.5, -0.4)),
    'ade_css_eclipse_100_5': (160_000, 12_000, 1e-3, 5, (0.1, 0.8)),
    'ade_css_eclipse_100_10': (160_000, 24_000, 1e-3, 5, (0.1, 0.7)),
    'ade_css_eclipse_100_50': (160_000, 120_000, 1e-3, 50, (0.0, -0.1)),
    'coco_cps_eclipse_83_5': (240_000, 8_000, 5e-4, 10, (0.5, 0.6)),
    'coco_cps_eclipse_83_10': (240_000, 32_000, 5e-4, 10, (0.5, 0.6)),
}

# Values of the published config files and scripts; None = not set there.
PUBLISHED_KEYS = (
    'base', 'increment', 'virtual', 'alpha', 'label_score', 'merge', 'decoder_kl', 'temperature',
    'class_weight', 'backbone', 'size', 'milestones', 'mask_threshold',
)  # fmt: skip
LATE, EARLY = (0.85, 0.95), (0.8, 0.9)
PUBLISHED = {
    'ade_cps_100_5': (
        100, 5, 5, 0.5, 0.35, False, 2.0, 1.0, 4.0, 'resnet50', 640, LATE, 0.25,
    ),
    'ade_cps_100_10': (
        100, 10, 1, 0.5, 0.35, False, 0.0, 1.0, 4.0, 'resnet50', 640, LATE, 0.3,
    ),
    'ade_cps_100_50': (
        100, 50, 0, 0.25, 0.35, False, 0.0, 1.0, 4.0, 'resnet50', 640, EARLY, 0.2,
    ),
    'ade_css_100_5': (
        100, 5, 3, 0.5, 0.0, True, 2.0, 2.0, 2.0, 'resnet101', 512, LATE, None,
    ),
    'ade_css_100_10': (
        100, 10, 1, 0.5, 0.0, True, 2.0, 4.0, 2.0, 'resnet101', 512, LATE, None,
    ),
    'ade_css_100_50': (
        100, 50, 1, 0.25, 0.0, True, 0.0, None, 2.0, 'resnet101', 512, LATE, None,
    ),
}  # fmt: skip


def load(name):
    return importlib.import_module(f'simcis_jax.configs.{name}')


def config_of(name, method=None):
    """The settings of a run with this config and method; None = that of the config."""
    config = load(name).get_config()
    config.method.name = method or config.method.name
    return from_config(resolve(config.to_dict()))


@pytest.mark.parametrize('name', NAMES)
def test_a_config_is_complete_and_its_docstring_has_its_command(name):
    config = config_of(name)
    assert config.training.batch_size >= 1
    docstring = load(name).__doc__
    assert f'python -m simcis_jax.main --config={name}' in docstring
    assert f'--workdir=runs/{name}' in docstring


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('name', NAMES)
def test_every_method_can_be_chosen(name, method):
    model = load(name).get_config().model
    refusal = None
    if method in NEEDS_SOFTMAX and model.head == 'sigmoid':
        refusal = "model.head='sigmoid' must be 'softmax' with"
    if method in NEEDS_SELECTED and model.queries == 'learned':
        refusal = f"method.{method}.csl_weight=2.0 must be 0 with model.queries='learned'"
    if refusal:
        with pytest.raises(ValueError, match=f'^{refusal}'):
            config_of(name, method)
    else:
        assert type(config_of(name, method).method) is METHODS[method]


@pytest.mark.parametrize('name', PUBLISHED)
def test_futcr_has_the_settings_of_simcis_but_for_one(name):
    simcis, futcr = (dataclasses.asdict(config_of(name, x).method) for x in ('simcis', 'futcr'))
    differing = {key for key in simcis if simcis[key] != futcr[key]}
    assert differing == ({'decoder_kl_weight'} if name == 'ade_cps_100_10' else set())
    assert futcr['decoder_kl_weight'] == 2.0 or name.endswith('_50')


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_settings_have_the_published_values(name):
    config = config_of(name)
    method = config.method
    values = (
        config.protocol.base,
        config.protocol.increment,
        method.num_virtual_queries,
        method.sampling_alpha,
        method.pseudo_label_score,
        method.merge_classes,
        method.decoder_kl_weight,
        method.decoder_kl_temperature,
        config.weights.classification,
        config.model['backbone'],
        config.data.size,
        tuple(config.optimizer.milestones),
        config.evaluation.object_mask_threshold,
    )
    for key, value, published in zip(PUBLISHED_KEYS, values, PUBLISHED[name], strict=True):
        assert published is None or value == published, key
    assert config.evaluation.short_side == config.data.size
    assert config.evaluation.max_side == 4 * config.data.size
    assert (config.training.batch_size, config.method.bank_size) == (8, 80)
    assert (config.training.base_steps, config.training.steps_per_class) == (160_000, 1_000)
    rates = config.optimizer.base_learning_rate, config.optimizer.later_learning_rate
    assert rates == (1e-4, 5e-5) and config.protocol.setting == 'overlapped'


@pytest.mark.parametrize('name', sorted(PLAIN))
def test_the_original_mask2former_has_the_settings_of_its_model_zoo(name):
    config = config_of(name)
    weights, optimizer, evaluation = config.weights, config.optimizer, config.evaluation
    assert (weights.classification, weights.mask, weights.dice, weights.no_object) == (2, 5, 5, 0.1)
    assert (optimizer.base_learning_rate, optimizer.weight_decay) == (1e-4, 0.05)
    assert optimizer.warmup_steps == 0  # On COCO, 10 steps at a factor of 1.
    assert (optimizer.backbone_multiplier, optimizer.clip_norm) == (0.1, 0.01)
    assert (evaluation.object_mask_threshold, evaluation.overlap_threshold) == (0.8, 0.8)
    assert (config.training.batch_size, config.model['num_queries']) == (16, 100)
    on_coco = name.startswith('coco')
    assert config.training.base_steps == (368_750 if on_coco else 160_000)
    assert optimizer.decay == ('steps' if on_coco else 'polynomial')
    assert len(config.protocol.stages(133 if on_coco else 150)) == 1
    swin = name.endswith('swin_t')
    assert (config.model['backbone'], config.model['stochastic_depth']) == (
        ('swin_t', 0.3) if swin else ('resnet50', 0.0)
    )


@pytest.mark.parametrize('method', ['mib', 'plop', 'comformer', 'pseudo_label', 'finetune'])
@pytest.mark.parametrize('name', sorted(CONTINUAL_PLAIN))
def test_continual_methods_on_the_original_mask2former_have_the_published_values(name, method):
    config = config_of(name, method)
    weights, optimizer, evaluation = config.weights, config.optimizer, config.evaluation
    assert (weights.classification, weights.mask, weights.dice, weights.no_object) == (2, 5, 5, 0.1)
    assert (optimizer.base_learning_rate, optimizer.later_learning_rate) == (1e-4, 5e-5)
    assert (optimizer.decay, optimizer.warmup_steps, optimizer.clip_norm) == ('polynomial', 0, 0.01)
    training = config.training
    assert (training.batch_size, training.base_steps, training.steps_per_class) == (8, 160_000, 400)
    assert (evaluation.object_mask_threshold, evaluation.overlap_threshold) == (0, 0)
    assert (config.data.size, config.model['backbone']) == (640, 'resnet50')
    assert (config.model['head'], config.model['queries']) == ('softmax', 'learned')
    values = dataclasses.asdict(config.method)
    if method == 'mib':
        assert values['distillation_weight'] == 200 and not values['balanced_initialization']
    if method == 'plop':
        assert (values['pod_weight'], values['pseudo_label_score']) == (0.001, 0)
        assert values['pseudo_label_overlap'] == 0.5
    if method == 'comformer':
        assert values['distillation_weight'] == (5 if name.endswith('100_50') else 10)
        assert values['softmax_masks'] and values['focal_cross_entropy'] and values['adaptive']
        assert (values['pseudo_label_score'], values['pseudo_label_overlap']) == (0, 0.5)


@pytest.mark.parametrize('name', sorted(BALCONPAS))
def test_balconpas_has_the_published_values(name):
    config = config_of(name)
    weights, optimizer, evaluation = config.weights, config.optimizer, config.evaluation
    assert (weights.classification, weights.mask, weights.dice, weights.no_object) == (2, 5, 5, 0.1)
    assert (optimizer.base_learning_rate, optimizer.later_learning_rate) == (1e-4, 5e-5)
    assert (optimizer.decay, optimizer.warmup_steps, optimizer.clip_norm) == ('polynomial', 0, 0.01)
    training, method = config.training, config.method
    assert (training.batch_size, training.base_steps, training.steps_per_class) == (
        8,
        160_000,
        1000,
    )
    assert (evaluation.object_mask_threshold, evaluation.overlap_threshold) == (0.8, 0.8)
    semantic = name.startswith('ade_css')
    assert config.data.size == evaluation.short_side == evaluation.max_side / 4
    assert (config.data.size, config.model['backbone']) == (
        (512, 'resnet101') if semantic else (640, 'resnet50')
    )
    assert evaluation.semantic_rule == 'soft_sum'
    assert evaluation.semantic_resize == ('scores' if semantic else 'logits')
    assert (config.protocol.replay_images, config.protocol.setting) == (300, 'overlapped')
    assert (method.pseudo_label_score, method.pseudo_label_overlap) == (0, 0.8)
    assert (method.distillation_weight, method.merge_classes) == (5, False)
    assert method.anti_misguidance and method.proportional_memory


@pytest.mark.parametrize('name', ECLIPSE)
def test_eclipse_has_the_published_values(name):
    config = config_of(name)
    data, kind, *_, base, increment = name.split('_')
    training, method = config.training, config.method
    values = (
        training.base_steps,
        training.steps_per_class * int(increment),
        config.optimizer.later_learning_rate,
        method.prompts_per_stage,
        method.deltas,
    )
    assert values == ECLIPSE[name]
    assert training.batch_size == (8 if (data, kind) == ('ade', 'cps') else 16)
    assert config.optimizer.decay == ('polynomial' if data == 'ade' else 'steps')
    assert config.optimizer.milestones == () or data == 'ade'  # Constant.
    assert config.model['num_queries'] == (50 if base == '50' else 100)
    assert config.model['backbone'] == ('resnet101' if kind == 'css' else 'resnet50')
    assert (config.weights.classification, method.later_class_weight) == (2, 10)
    evaluation = config.evaluation
    thresholds = evaluation.object_mask_threshold, evaluation.semantic_threshold
    assert thresholds[kind == 'css'] == evaluation.overlap_threshold == 0
    sides = {'ade_cps': (640, 2560), 'ade_css': (512, 2048), 'coco_cps': (800, 1333)}
    assert (evaluation.short_side, evaluation.max_side) == sides[f'{data}_{kind}']
    assert config.data.color == (data == 'ade')


@pytest.mark.parametrize('name', [name for name in NAMES if name.split('_')[-2].isdigit()])
def test_a_config_has_the_protocol_in_its_name(name):
    data, *_, base, increment = name.split('_')
    protocol = load(name).get_config().protocol
    assert (protocol.base, protocol.increment) == (int(base), int(increment))
    num_classes = {'ade': 150, 'coco': 133, 'camvid': 11, 'shapes': 12}[data]
    make_stages(num_classes, base=protocol.base, increment=protocol.increment)
