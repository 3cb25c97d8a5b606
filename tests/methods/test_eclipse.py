"""ECLIPSE against the published decoder, losses, stage start, logit manipulation and inference."""

import dataclasses
import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import recorded_eclipse
import runs
from flax.traverse_util import flatten_dict
from recorded import key_of_draws
from test_mib import plain_config

from simcis_jax import main, predict, settings
from simcis_jax.continual.stages import Stage
from simcis_jax.evaluation.postprocess import panoptic_inference, semantic_inference
from simcis_jax.losses.matcher import LossWeights
from simcis_jax.losses.segmentation import PointSampling
from simcis_jax.methods.eclipse import CLASS_FACTOR, ECLIPSE, independent_focal
from simcis_jax.methods.step import Step
from simcis_jax.model.layers import normalize_rows
from simcis_jax.model.prompted_mask2former import PromptedMask2Former
from simcis_jax.model.resize import resize
from simcis_jax.settings import OptimizerSettings
from simcis_jax.training.optimizer import count_parameters, make_optimizer, without_gradient
from simcis_jax.types import Batch, StageArrays, Targets, TrainState

GOLDEN = Path(__file__).parent / 'golden' / 'eclipse.npz'
NUM_CLASSES, SLOTS, NUM_POINTS = 13, 8, 256
CLOSE = dict(rtol=1e-5, atol=2e-5)  # Float32 and float64 differ by 5e-6.


@pytest.fixture(scope='module')
def golden():
    return dict(np.load(GOLDEN))


@functools.cache
def params(shallow=False):
    return recorded_eclipse.params(shallow=shallow)


def stage_of(number):
    """The stage as `Method.trainable` gets it, and as arrays."""
    past = sum(recorded_eclipse.STAGES[: number - 1], ())
    stage = Stage(number - 1, past, recorded_eclipse.STAGES[number - 1])
    masks = map(jnp.asarray, stage.masks(NUM_CLASSES))
    return stage, StageArrays(*masks, jnp.int32(1), jnp.float32(5e-4), jnp.int32(number - 1))


def frozen_in(stage, tree):
    paths = flatten_dict(tree, sep='/')
    return frozenset(path for path in paths if not ECLIPSE().trainable(path, stage))


@functools.partial(jax.jit, static_argnames=('network', 'rows'))
def decode(params, inputs, seen, *, network, rows):
    variables = {'params': params}
    return network.apply(variables, *inputs, seen, rows, method=PromptedMask2Former.decode)


def decoded_by(params, number, rows='all', **settings):
    network = recorded_eclipse.network(**settings)
    seen = stage_of(number)[1].seen
    return decode(params, recorded_eclipse.inputs(), seen, network=network, rows=rows)


@functools.cache
def decoded(rows='all', number=3):
    """The predictions after a stage."""
    return decoded_by(params(), number, rows)


# Decoder


def test_the_decoder_is_that_of_the_published_code(golden):
    ours = decoded()
    np.testing.assert_allclose(ours.class_logits[-1], golden['raw/class_logits'], **CLOSE)
    masks = ours.mask_logits()[:, :, ::4, ::4]
    np.testing.assert_allclose(masks, golden['masks'], **CLOSE)
    first = ours.mask_logits(0)[:, ::5, ::4, ::4]
    np.testing.assert_allclose(first, golden['masks_first'], **CLOSE)
    norm = params()['heads']['norm']
    normalised = normalize_rows(ours.queries, norm['scale'], norm['bias'])
    np.testing.assert_allclose(normalised[:, :, ::5], golden['all/queries'], **CLOSE)


def test_prompts_may_have_one_position_for_all_layers(golden):
    ours = decoded_by(params(shallow=True), 3, layer_positions=False)
    logits = ECLIPSE(deltas=SHALLOW_DELTAS).class_logits(ours, None)
    np.testing.assert_allclose(logits, golden['shallow/class_logits'], **CLOSE)
    masks = ours.mask_logits()[:, :, ::4, ::4]
    np.testing.assert_allclose(masks, golden['shallow/masks'][:, :, ::2, ::2], **CLOSE)


SHALLOW_DELTAS = 0.4, 0.5, 0.6


def test_earlier_queries_predict_the_same_whatever_prompts_are_added():
    """And the newest prompts, which training decodes alone, predict what they do among others."""
    everything = decoded()
    parts = [('first', slice(0, 20)), ('newest', slice(25, 30))]
    for rows, where in parts:
        alone = decoded(rows)
        for field in ('class_logits', 'mask_embeddings', 'queries'):
            ours, theirs = getattr(alone, field), getattr(everything, field)[:, :, where]
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(alone.stages[0], everything.stages[0][where])


def test_the_base_model_is_that_of_the_published_code(golden):
    logits = decoded('first', number=1).class_logits
    known = [*recorded_eclipse.STAGES[0], NUM_CLASSES]
    ours = logits[..., jnp.array(known)]
    np.testing.assert_allclose(ours, golden['step0/train_class_logits'], **CLOSE)
    at_inference = ECLIPSE().class_logits(decoded(number=1), stage_of(1)[1].seen)
    assert (at_inference[:, 20:, :-1] < -1e8).all()  # There are no prompts yet.
    ours = at_inference[:, :20, jnp.array(known)]
    np.testing.assert_allclose(ours, golden['step0/class_logits'], **CLOSE)


def test_prompts_of_stages_to_come_predict_nothing():
    seen = stage_of(2)[1].seen
    ours = decoded_by(params() | {'newest': recorded_eclipse.prompts(2)}, 2)
    logits = ECLIPSE(deltas=(0.0,)).class_logits(ours, seen)
    assert (logits[..., 10:13] < -1e8).all() and (logits[:, 25:, :-1] < -1e8).all()
    after = ECLIPSE(deltas=(0.0,)).class_logits(decoded(), None)
    keep = jnp.array([*range(10), NUM_CLASSES])
    np.testing.assert_allclose(logits[:, :25, keep], after[:, :25, keep], **CLOSE)


# Inference


@pytest.mark.parametrize(
    ('case', 'deltas'),
    [
        ('positive', (0.4, 0.5, 0.6)),
        ('mixed', (0.6, -0.6, -0.3)),
        ('negative', (-0.4, -0.6, -0.6)),
        ('zero', (0.0,)),
        ('none', ()),
        ('scalar', (0.5,)),
        ('short', (0.3, 0.7)),
        ('long', (0.4, 0.6, 0.6, 0.9)),
    ],
)
def test_manipulated_logits_are_those_of_the_published_code(golden, case, deltas):
    ours = ECLIPSE(deltas=deltas).class_logits(decoded(), None)
    np.testing.assert_allclose(ours, golden[f'{case}/class_logits'], **CLOSE)
    assert case in ('zero', 'none') or (ours != decoded().class_logits[-1])[..., -1].any()


@pytest.mark.parametrize('image', [0, 1])
@pytest.mark.parametrize('case', ['mixed', 'negative', 'handmade'])
def test_segments_are_those_of_the_published_code(golden, case, image):
    logits = jnp.asarray(golden[f'{case}/class_logits'][image])
    masks = resize(decoded().mask_logits()[image], (128, 160))
    is_thing = np.isin(np.arange(NUM_CLASSES), golden['things'])
    options = dict(head='independent', object_mask_threshold=0.0, overlap_threshold=0.0)
    panoptic = panoptic_inference(logits, masks, is_thing=jnp.asarray(is_thing), **options)
    published = golden[f'{case}/{image}/segment_map']
    assert (np.asarray(panoptic.segment_map) != published).mean() < 1e-3
    ids, categories, _ = golden[f'{case}/{image}/segments'].T
    np.testing.assert_array_equal(panoptic.labels[ids - 1], categories - 1)
    assert (panoptic.labels >= 0).sum() == len(ids) > 0
    semantic = np.asarray(semantic_inference(logits, masks, **options))
    ours = np.where(semantic == NUM_CLASSES, 0, semantic + 1)
    assert (ours != golden[f'{case}/{image}/semantic']).mean() < 1e-3


# Losses and gradients


def test_the_class_loss_is_that_of_the_published_code(golden):
    logits, labels = jnp.asarray(golden['focal/logits']), golden['focal/labels']
    labels = jnp.where(labels == logits.shape[-1] - 1, -1, labels)
    ours = CLASS_FACTOR * independent_focal(logits, labels).sum() / logits.size
    np.testing.assert_allclose(ours, golden['focal/loss'], rtol=1e-5)


def draws(golden):
    """A key with which a step draws the recorded points."""
    matching = np.zeros((2, 2, NUM_POINTS, 2), np.float32)
    candidates = np.zeros((2, 2, SLOTS, 3 * NUM_POINTS, 2), np.float32)
    uniform = np.zeros((2, 2, SLOTS, NUM_POINTS // 4, 2), np.float32)
    for i, name in enumerate(('initial', 'final')):
        pairs = zip(
            *(golden[f'points/{name}/{kind}'] for kind in ('oversampled', 'rest')), strict=True
        )
        for image in (0, 1):
            matching[image, i] = golden[f'points/{name}/match/{image}']
            for slot in golden[f'match/{name}/{image}'][1]:
                candidates[image, i, slot], uniform[image, i, slot] = next(pairs)
    return key_of_draws(matching, candidates, uniform)


def targets_of(golden, images=(0, 1)):
    """The recorded targets; other images have none."""
    maps, labels = np.zeros((2, 128, 160), np.uint8), np.full((2, SLOTS), -1)
    for image in images:
        masks = np.unpackbits(golden[f'target/{image}/masks_packed'], axis=-1)
        assert masks.sum(axis=0).max() <= 1
        maps[image] = (masks * np.arange(1, len(masks) + 1)[:, None, None]).sum(axis=0)
        labels[image, : len(masks)] = golden[f'target/{image}/labels']
    return Targets(jnp.asarray(maps), jnp.asarray(labels), jnp.zeros((2, SLOTS, 4)), jnp.zeros(2))


class Decoder:
    """A network whose images are the recorded maps."""

    head, stochastic_depth = 'independent', 0.0

    def apply(self, variables, inputs, seen, virtual, rows):
        network = recorded_eclipse.network()
        return network.apply(variables, *inputs, seen, rows, method=PromptedMask2Former.decode)


DECODER = Decoder()


def step_of(golden, targets):
    """A step of stage 3, whose model decodes the recorded maps."""
    stage, arrays = stage_of(3)
    return Step(
        model=DECODER,
        weights=LossWeights(classification=2.0, mask=5.0, dice=5.0),
        sampling=PointSampling(num_points=NUM_POINTS),
        frozen=frozen_in(stage, params()),
        stage=arrays,
        batch=Batch(recorded_eclipse.inputs(), targets),
        targets=targets,
        key=jax.random.fold_in(draws(golden), 0),
        rows=jnp.arange(2),
    )


@jax.jit
def train(tree, step):
    """The weighted total, losses, predictions and matches, and the gradients."""
    method = ECLIPSE()

    def run(tree):
        now = step.replace(params=without_gradient(tree, step.frozen))
        now = now.replace(student=method.predict(now))
        now = now.replace(matches=method.match(now))
        terms, totals = method.losses(now), method.totals(now)
        losses = {name: term.sum / totals[term.per] for name, term in terms.items()}
        total = sum(terms[name].weight * loss.sum() for name, loss in losses.items())
        return total, (losses, now.student, now.matches)

    return jax.value_and_grad(run, has_aux=True)(tree)


OURS = {
    'prompt_feat.1.weight': 'newest/prompts/features',
    'class_embed.cls.0': 'heads/no_object',
    'class_embed.cls.3': 'newest/class_head',
    'prompt_mask_embed.1': 'newest/mask_head',
}


def ours_of(published, flat):
    """Our array of the published name, in the published layout."""
    if found := re.fullmatch(r'prompt_embed\.1\.(\d)\.weight', published):
        return flat['newest/prompts/positions'][int(found[1])]
    module, *rest = re.split(r'\.layers\.', published)
    if not rest:
        return flat[OURS[module]]
    layer, kind = rest[0].split('.')
    name = {'weight': 'kernel', 'bias': 'bias'}[kind]
    return flat[f'{OURS[module]}/layer{layer}/dense/{name}'].T


@pytest.fixture(scope='module')
def trained(golden):
    """Total, losses, predictions, matches, and gradients of the recorded step."""
    step = step_of(golden, targets_of(golden))
    (total, aux), gradients = train(params(), step)
    return total, *aux, gradients, step


def test_predictions_and_matches_are_those_of_the_published_code(golden, trained):
    _, _, student, matches, *_ = trained
    np.testing.assert_allclose(student.class_logits, golden['train/class_logits'], **CLOSE)
    masks = jnp.stack([student.mask_logits(i)[..., ::4, ::4] for i in (0, 1)])
    np.testing.assert_allclose(masks, golden['train/masks'], **CLOSE)
    for i, name in enumerate(('initial', 'final')):
        for image in (0, 1):
            queries, targets = golden[f'match/{name}/{image}']
            np.testing.assert_array_equal(matches.queries[i, image, targets], queries)


def test_losses_are_those_of_the_published_code(golden, trained):
    total, losses, *_ = trained
    for ours, theirs in {'class': 'ce', 'mask': 'mask', 'dice': 'dice'}.items():
        published = [golden[f'loss/loss_{theirs}{tail}'] for tail in ('_0', '')]
        np.testing.assert_allclose(losses[ours], published, rtol=1e-5, err_msg=ours)
    np.testing.assert_allclose(total, golden['loss/total'], rtol=1e-5)


def test_gradients_and_update_are_those_of_the_published_code(golden, trained):
    gradients, step = trained[-2:]
    flat = flatten_dict(gradients, sep='/')
    norm = optax.tree.norm(gradients)
    np.testing.assert_allclose(norm, golden['grad/norm'], rtol=1e-4)
    moving = {path.split('/layer')[0] for path, x in flat.items() if np.any(x)}
    assert moving == {
        'newest/prompts/features', 'newest/prompts/positions', 'newest/mask_head',
        'newest/class_head', 'heads/no_object',
    }  # fmt: skip
    optimizer = make_optimizer(params(), OptimizerSettings(), step.frozen)
    updates, state = optimizer.update(gradients, optimizer.init(params()), params())
    assert 2 * 27_000 < sum(x.size for x in jax.tree.leaves(state)) < 2 * 32_000
    updates = flatten_dict(updates, sep='/')
    names = [name.split('/')[1] for name in golden if name.startswith('grad/')]
    assert len(names) > 8
    for name in set(names) - {'norm'}:
        theirs = golden[f'grad/{name}']
        atol = 1e-4 * np.abs(theirs).max()
        np.testing.assert_allclose(ours_of(name, flat), theirs, rtol=1e-4, atol=atol, err_msg=name)
        if f'update/{name}' in golden:
            rate, theirs = 5e-4, golden[f'update/{name}']
            ours = rate * ours_of(name, updates)
            np.testing.assert_allclose(ours, theirs, atol=1e-3 * rate, err_msg=name)


def test_an_image_without_targets_has_the_published_class_loss(golden):
    (_, (losses, _, matches)), _ = train(params(), step_of(golden, targets_of(golden, images=(0,))))
    for i, (name, tail) in enumerate((('initial', '_0'), ('final', ''))):
        queries, targets = golden[f'one_empty/match/{name}/0']
        np.testing.assert_array_equal(matches.queries[i, 0, targets], queries)
        np.testing.assert_allclose(
            losses['class'][i], golden[f'one_empty/loss_ce{tail}'], rtol=1e-5
        )


def test_all_decoder_outputs_may_have_a_loss(golden):
    step = step_of(golden, targets_of(golden)).replace(params=params())
    shapes = [
        jax.eval_shape(ECLIPSE(all_outputs=x).predict, step).class_logits.shape
        for x in (False, True)
    ]
    assert [shape[0] for shape in shapes] == [2, recorded_eclipse.LAYERS + 1]


# Stages


def state_of(tree):
    return TrainState(jnp.int32(0), tree, None, (), jax.random.key(0), jnp.int32(0))


def test_a_stage_begins_as_in_the_published_code(golden):
    before = params() | {'newest': jax.tree.map(jnp.asarray, recorded_eclipse.prompts(2))}
    before['finished'] = jax.tree.map(jnp.zeros_like, before['finished'])
    after = ECLIPSE().begin_stage(state_of(before), stage_of(3)[1], None).params
    flat = flatten_dict(after, sep='/')
    names = [name.removeprefix('init/') for name in golden if name.startswith('init/')]
    compared = [name for name in names if '.' in name]
    assert len(compared) >= 6
    for name in compared:
        np.testing.assert_allclose(
            ours_of(name, flat), golden[f'init/{name}'], rtol=1e-5, atol=1e-6
        )
    jax.tree.map(
        lambda stack, old: np.testing.assert_array_equal(stack, [old, jnp.zeros_like(old)]),
        after['finished'],
        before['newest'],
    )
    changed = {
        path.split('/')[0]
        for path, x in flat.items()
        if x is not flatten_dict(before, sep='/')[path]
    }
    assert changed == {'newest', 'finished'}


def test_stage_2_has_no_prompts_to_keep():
    after = ECLIPSE().begin_stage(state_of(params()), stage_of(2)[1], None).params
    jax.tree.map(np.testing.assert_array_equal, after['finished'], params()['finished'])


@pytest.mark.parametrize(
    ('settings', 'trained'),
    [
        (dict(prompts_per_stage=10), 488_971),
        (dict(prompts_per_stage=50), 601_651),
        (dict(train_no_object=False), 488_971 - 131_841),
    ],
)
def test_a_stage_trains_as_many_parameters_as_published(settings, trained):
    method, number = ECLIPSE(**settings), 50 if settings.get('prompts_per_stage') == 50 else 10
    stages = [Stage(i, tuple(range(100 + i * number - number)) if i else (), ()) for i in (0, 1)]
    stages = [
        dataclasses.replace(stages[0], current=tuple(range(100))),
        dataclasses.replace(stages[1], current=tuple(range(100, 100 + number))),
    ]
    model = method.make_model(
        stages, dict(backbone='small', queries='learned', boxes=False, head='softmax')
    )
    assert model.num_classes == 100 + number
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    tree = jax.eval_shape(model.init, jax.random.key(0), image)['params']
    for stage, expected in zip(stages, (None, trained), strict=True):
        frozen = frozenset(p for p in flatten_dict(tree, sep='/') if not method.trainable(p, stage))
        count, total = count_parameters(tree, frozen)
        assert count == expected or (expected is None and count > total / 2)


# Runs


def config_of_run(**changes):
    settings = {'method.eclipse.prompts_per_stage': 3, 'evaluation.every': 2} | changes
    return plain_config('eclipse', **settings)


def params_of(workdir, stage):
    return flatten_dict(runs.newest_state(workdir, stage)['params'], sep='/')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The folder and the results of a run of three stages."""
    folder = tmp_path_factory.mktemp('eclipse')
    return folder, main.run(config_of_run(), str(folder))


@pytest.mark.slow
def test_a_later_stage_trains_its_prompts_alone(run):
    folder, results = run
    assert len(results['stages']) == 3
    first, second, third = (params_of(folder, stage) for stage in (1, 2, 3))
    for before, after in ((first, second), (second, third)):
        changed = {path for path in before if (before[path] != after[path]).any()}
        kept = {'newest', 'finished', 'heads'}
        assert {path.split('/')[0] for path in changed} <= kept
        assert {path for path in changed if path.startswith('heads/')} == {
            path for path in before if path.startswith('heads/no_object/')
        }
    for path, stack in third.items():
        if path.startswith('finished/'):
            newest = second[path.replace('finished', 'newest')]
            np.testing.assert_array_equal(stack[0], newest)
            np.testing.assert_array_equal(stack[1], second[path][1])
    state = runs.newest_state(folder, 3)['rest']['opt_state']
    trained = sum(
        x.size for path, x in third.items() if path.startswith(('newest/', 'heads/no_object/'))
    )
    moments = sum(x.size for x in jax.tree.leaves(state))
    assert 2 * trained <= moments <= 2 * trained + 9
    logged = runs.records(folder)
    assert all(record['skipped_steps'] == 0 for record in logged)
    assert all(np.isfinite(record['class']) for record in logged if 'class' in record)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_numbers(run, tmp_path, monkeypatch):
    def crash(_):
        raise RuntimeError('the machine is gone')

    with monkeypatch.context() as patch:
        runs.at_step(patch, 13, crash)  # In stage 3, which has a checkpoint.
        with pytest.raises(RuntimeError):
            main.run(config_of_run(), str(tmp_path))
    assert main.run(config_of_run(), str(tmp_path)) == run[1]
    runs.assert_same(tmp_path, run[0])


@pytest.mark.slow
def test_a_run_continues_from_a_stage_of_another_run(run, tmp_path):
    source = run[0] / 'stage_2'
    results = main.run(config_of_run(**{'training.init_from': str(source)}), str(tmp_path))
    assert results['stages'] == run[1]['stages']
    for path, x in params_of(run[0], 3).items():
        np.testing.assert_array_equal(params_of(tmp_path, 3)[path], x)


@pytest.mark.slow
def test_a_stage_segments_images(run):
    predictor = predict.load(run[0] / 'stage_2', object_mask_threshold=0.0, overlap_threshold=0.0)
    result = predictor(np.full((64, 64, 3), 128, np.uint8))
    assert result.segment_map.shape == (64, 64) and max(result.labels, default=0) < 10


def test_what_does_not_fit_is_refused():
    changes = {'model.head': 'sigmoid', 'model.class_prior': None, 'protocol.mask_unseen': False}
    with pytest.raises(ValueError, match="mask_unseen=False must be True with method.name='ecl"):
        settings.from_config(config_of_run(**changes).to_dict())
    changes = {'model.boxes': True}
    with pytest.raises(ValueError, match="model.boxes=True must be False with method.name='ecl"):
        settings.from_config(config_of_run(**changes).to_dict())


def test_one_stage_has_no_prompts():
    model = ECLIPSE().make_model([stage_of(1)[0]], dict(queries='learned', boxes=False))
    assert model.known == (recorded_eclipse.STAGES[0],) and model.columns.tolist() == list(range(7))


def test_classes_of_any_order_and_number_have_a_column_of_their_own():
    stages = (4, 0), (6, 2), (5,), (1, 3)
    model = recorded_eclipse.network(stages)
    assert sorted(model.columns) == [0, 1, 2, 3, 4, 6, 7]  # Column 5 has no class.
    assert model.columns[[4, 0, 6, 2, 5, 1, 3]].tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert model.class_stages.tolist() == [0, 3, 1, 3, 0, 2, 1]
