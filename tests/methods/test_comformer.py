"""CoMFormer against the published losses, matching, pseudo-labels and decoder."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded_decoder import decode, state_of
from recorded_pseudo_labels import assert_published
from test_mib import columns, of_published, stage_of
from tiny import plain_config

from simcis_jax import main
from simcis_jax.continual.pseudo_labels import add_pseudo_labels
from simcis_jax.losses import segmentation
from simcis_jax.losses.classification import cross_entropies, focal_cross_entropy
from simcis_jax.losses.point_sampling import keep_uncertain, sample_map
from simcis_jax.losses.segmentation import Matches, match_targets
from simcis_jax.losses.weights import LossWeights
from simcis_jax.methods.comformer import CoMFormer
from simcis_jax.methods.step import Step
from simcis_jax.model.class_logits import without_unseen
from simcis_jax.model.mask_logits import sigmoid_logits
from simcis_jax.port.names import (
    CLASS_HEAD,
    LEARNED_QUERIES,
    MASKED_DECODER,
    PREDICTOR,
    Layout,
)
from simcis_jax.port.torch_weights import to_flax
from simcis_jax.types import Predictions, Selection, Targets

GOLDEN = Path(__file__).parent / 'golden' / 'comformer.npz'
LAYERS, SLOTS = 3, 8


@pytest.fixture(scope='module')
def golden():
    return dict(np.load(GOLDEN))


def predictions(class_logits, masks=None):
    """Predictions of class logits [L, B, Q, C + 1], and mask logits [L, B, Q, h, w] if given.

    The mask features are one-hot, so that the embeddings are the masks.
    """
    features = embeddings = None
    if masks is not None:
        images, (height, width) = masks.shape[1], masks.shape[3:]
        one_hot = jnp.eye(height * width).reshape(height, width, -1)
        features = jnp.broadcast_to(one_hot, (images, *one_hot.shape))
        embeddings = masks.reshape(*masks.shape[:3], -1)
    return Predictions(
        class_logits=class_logits,
        mask_embeddings=embeddings,
        boxes=None,
        virtual_class_logits=jnp.zeros((*class_logits.shape[:2], 0, class_logits.shape[-1])),
        mask_features=features,
        selection=Selection(None, None, None),
        head='softmax',
        masks='softmax',
    )


# Class losses


@pytest.mark.parametrize(
    'case',
    ['random0', 'random2', 'all_no_object', 'teacher_sure_no_object', 'student_equals_teacher'],
)
def test_class_losses_and_gradients_are_those_of_the_published_code(golden, case):
    student, teacher, target = (golden[f'{case}/{x}'] for x in ('student', 'teacher', 'target'))
    num_seen = student.shape[-1] - 1
    stage = stage_of(int(golden[f'{case}/num_old']), num_seen)
    num_classes = len(stage.past)
    labels = jnp.asarray(np.where(target == num_seen, -1, target))
    teacher = without_unseen(columns(teacher, num_classes), stage.past)[None]
    step = Step(stage=stage, teacher=predictions(teacher), targets=targets_of([[]] * len(labels)))

    def class_loss(x):
        return focal_cross_entropy(cross_entropies(x, labels)).mean()

    def distillation(x, method):
        terms = method.distillation(step.replace(student=predictions(x[None])))
        total = method.totals(step)['distillation']
        return terms.sum / jnp.where(total > 0, total, 1)  # As the train step.

    functions = {
        'focal_a5_g1': class_loss,
        'ukd_reweighted': lambda x: distillation(x, CoMFormer()),
        'ukd_alpha2': lambda x: distillation(x, CoMFormer(adaptive=False, teacher_sharpness=2.0)),
    }

    @jax.jit
    def all_losses(x):
        return {
            name: jax.value_and_grad(lambda x, loss=loss: loss(without_unseen(x, stage.seen)))(x)
            for name, loss in functions.items()
        }

    for name, (value, gradient) in all_losses(columns(student, num_classes)).items():
        gradient = of_published(np.asarray(gradient), num_seen)
        recorded = golden[f'{case}/{name}']
        if np.isnan(recorded):  # All weights are 0; without a loss, the step is not lost.
            assert value == 0 and not gradient.any()
            continue
        np.testing.assert_allclose(value, recorded, rtol=1e-5, atol=1e-6)
        recorded = golden[f'{case}/{name}_grad']
        atol = max(1e-4 * np.abs(recorded).max(), 1e-7)
        np.testing.assert_allclose(gradient, recorded, rtol=1e-4, atol=atol)


# Matching and all losses of a step


def targets_of(labels):
    """Targets with labels of each image; the masks are given elsewhere, because they overlap."""
    padded = [np.pad(x, (0, SLOTS - len(x)), constant_values=-1) for x in labels]
    padded = np.stack(padded).astype(np.int32)
    images = len(padded)
    segment_map = jnp.zeros((images, 48, 48), jnp.uint8)
    boxes, dropped = jnp.zeros((images, SLOTS, 4)), jnp.zeros(images, jnp.int32)
    return Targets(segment_map, jnp.asarray(padded), boxes, dropped)


def criterion(golden, case):
    """What was recorded of a case, without its name, and the labels of its images."""
    case = f'criterion_{case}/'
    recorded = {name.removeprefix(case): x for name, x in golden.items() if name.startswith(case)}
    return recorded, [recorded[f'labels{i}'] for i in range(len(recorded['student_logits0']))]


def padded_masks(masks):
    return np.pad(masks, ((0, SLOTS - len(masks)), (0, 0), (0, 0))).astype(np.float32)


@pytest.mark.parametrize('image', [0, 2])
def test_matches_are_those_of_the_published_code(golden, image, monkeypatch):
    recorded, labels = criterion(golden, 'comformer')
    truth = padded_masks(recorded[f'masks{image}'])
    points = np.stack([recorded[f'match_points{i}_image{image}'] for i in range(LAYERS)])
    monkeypatch.setattr(jax.random, 'uniform', lambda key, shape: jnp.asarray(points))

    def sample_slots(segment_map, points, num_slots):
        return sample_map(jnp.asarray(truth), jnp.broadcast_to(points, (SLOTS, *points.shape))).T

    monkeypatch.setattr(segmentation, 'sample_slots', sample_slots)
    logits, masks = (
        jnp.stack([recorded[f'student_{x}{i}'][image : image + 1] for i in range(LAYERS)])
        for x in ('logits', 'masks')
    )
    # The cost of softmax masks has no weights.
    weights = LossWeights(classification=jnp.nan, mask=jnp.nan, dice=jnp.nan)
    match = functools.partial(match_targets, weights=weights, num_points=points.shape[1])
    matches = jax.jit(match)(
        predictions(logits, masks),
        targets_of([labels[image]]),
        jax.random.split(jax.random.key(0), 1),
    )
    for layer in range(LAYERS):
        queries, targets = recorded[f'match{layer}_image{image}']
        np.testing.assert_array_equal(matches.queries[layer, 0, targets], queries)


@pytest.mark.parametrize(
    'case, layer',
    [
        pytest.param('comformer', 0, marks=pytest.mark.slow),
        ('comformer', 2),
        pytest.param('comformer_empty', 2, marks=pytest.mark.slow),
    ],
)
def test_losses_and_gradients_of_a_step_are_those_of_the_published_code(
    golden, case, layer, monkeypatch
):
    recorded, labels = criterion(golden, case)
    images, num_points = len(labels), recorded['loss_points0'].shape[1]
    queries = np.zeros((1, images, SLOTS), np.int32)
    points = np.full((images, SLOTS, num_points, 2), 0.5, np.float32)
    rest = iter(recorded[f'loss_points{layer}'])
    for image in range(images):
        for query, target in recorded[f'match{layer}_image{image}'].T:
            queries[0, image, target], points[image, target] = query, next(rest)
    masks = np.stack([padded_masks(recorded[f'masks{i}']) for i in range(images)])
    truth = np.asarray(sample_map(jnp.asarray(masks), jnp.asarray(points)))

    def recorded_points(keys, maps, *, centre, **sampling):
        assert centre == 0.5
        return jnp.asarray(points)

    monkeypatch.setattr(segmentation, 'uncertain_points', recorded_points)
    monkeypatch.setattr(segmentation, 'sample_segments', lambda *_: jnp.asarray(truth)[None])

    logits = recorded[f'student_logits{layer}']
    num_seen = logits.shape[-1] - 1
    stage = stage_of(int(recorded['num_old']), num_seen)
    num_classes = len(stage.past)
    teacher = without_unseen(columns(recorded['teacher_logits'], num_classes), stage.past)
    step = Step(
        weights=LossWeights(classification=2.0),
        stage=stage,
        targets=targets_of(labels),
        teacher=predictions(teacher[None]) if layer == LAYERS - 1 else None,
        matches=Matches(jnp.asarray(queries), jnp.int32(0)),
        key=jax.random.key(0),
        rows=jnp.arange(images),
    )
    method = CoMFormer()

    @jax.jit
    def total(logits, masks):
        logits = without_unseen(logits, stage.seen)[None]
        terms = method.losses(step.replace(student=predictions(logits, masks[None])))
        totals = method.totals(step)
        losses = {
            name: (term.sum / jnp.maximum(totals[term.per], 1e-9)).sum()
            for name, term in terms.items()
        }
        return sum(terms[name].weight * x for name, x in losses.items()), losses

    gradient_of = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    inputs = columns(logits, num_classes), jnp.asarray(recorded[f'student_masks{layer}'])
    (_, losses), gradients = gradient_of(*inputs)
    tail = '' if layer == LAYERS - 1 else f'_{layer}'
    names = {'class': 'ce', 'mask': 'mask', 'dice': 'dice', 'distillation': 'kd'}
    assert losses.keys() == {x for x in names if x != 'distillation' or not tail}
    for name, value in losses.items():
        theirs = recorded[f'loss/loss_{names[name]}{tail}']
        np.testing.assert_allclose(value, theirs, rtol=1e-5, err_msg=name)
    gradients = [of_published(np.asarray(gradients[0]), num_seen), gradients[1]]
    for ours, name in zip(gradients, ('logits', 'masks'), strict=True):
        theirs = recorded[f'grad_{name}{layer}']
        atol = 1e-4 * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=atol, err_msg=name)


def test_points_are_uncertain_where_the_probability_is_nearest_to_a_half():
    maps = jnp.array([[[0.0, 0.45, 1.0, 0.3]]])
    candidates = jnp.stack([(jnp.arange(4) + 0.5) / 4, jnp.full(4, 0.5)], axis=-1)[None]
    kept = keep_uncertain(maps, candidates, jnp.zeros((1, 0, 2)), 2, centre=0.5)
    assert sorted(kept[0, :, 0].tolist()) == [0.375, 0.875]


# Pseudo-labels, decoder and inference


@pytest.mark.parametrize('image', [0, 1])
@pytest.mark.parametrize('case', ['boxes', 'many', 'threshold', 'full_gt', 'no_gt', 'nothing_kept'])
def test_pseudo_labels_are_those_of_the_published_code(golden, case, image):
    case = f'softmask_{case}'
    rule = CoMFormer(pseudo_label_score=float(golden[f'{case}/threshold'])).rule
    assert_published(golden, case, image, 20, functools.partial(add, rule=rule))


def _add(class_logits, mask_logits, targets, past, rule):
    logits = without_unseen(class_logits, past)
    return add_pseudo_labels(
        logits, mask_logits, targets, past, rule=rule, head='softmax', masks='softmax'
    )


add = jax.jit(_add, static_argnames='rule')


def test_the_decoder_is_that_of_the_published_code(golden):
    state, layers = state_of(golden), 4
    for kind in ('weight', 'bias'):
        no_object, *rows = (state.pop(f'{PREDICTOR}.class_embed.cls.{i}.{kind}') for i in range(3))
        state[f'{PREDICTOR}.class_embed.{kind}'] = np.concatenate([*rows, no_object])
    params = to_flax(state, Layout('decoder', LEARNED_QUERIES + MASKED_DECODER + CLASS_HEAD))
    recorded, outputs, features = decode(
        golden, params, num_classes=5, layers=layers, masks='softmax'
    )
    for layer in range(layers + 1):
        theirs = recorded[f'logits{layer}']
        np.testing.assert_allclose(outputs.class_logits[layer], theirs, rtol=1e-5, atol=1e-5)
    masks = jnp.einsum('bqd,bhwd->bqhw', outputs.mask_embeddings[-1], features)
    np.testing.assert_allclose(masks, recorded[f'masks{layers}'], rtol=1e-5, atol=1e-4)


def test_softmax_masks_as_logits_of_a_sigmoid():
    logits = 5 * jax.random.normal(jax.random.key(0), (2, 7, 4, 6))
    logits = logits.at[:, :, 0, 0].set(jnp.arange(7) * 100.0).at[:, :, -1].set(-jnp.inf)
    equivalent = sigmoid_logits(logits, 'softmax')
    expected = jax.nn.softmax(logits[:, :, :-1], axis=1)
    np.testing.assert_allclose(jax.nn.sigmoid(equivalent[:, :, :-1]), expected, rtol=1e-5)
    np.testing.assert_array_equal(equivalent[:, :, :-1] >= 0, expected >= 0.5)
    assert (equivalent[:, :, -1] == -jnp.inf).all() and not jnp.isnan(equivalent).any()
    assert sigmoid_logits(logits, 'sigmoid') is logits


def test_the_method_chooses_the_masks_of_the_network():
    class Seen:
        seen = range(5)

    for choice, masks in ((True, 'softmax'), (False, 'sigmoid')):
        model = CoMFormer(softmax_masks=choice).make_model([Seen], {})
        assert model.masks == masks


@pytest.mark.slow
def test_a_run_of_three_stages(tmp_path):
    config = plain_config('comformer', **{'evaluation.tasks': ('panoptic', 'semantic')})
    results = main.run(config, str(tmp_path))
    assert len(results['stages']) == 3
    logged = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').open()]
    assert all(('distillation' in record) == (record['stage'] > 1) for record in logged)
    assert all(record['skipped_steps'] == 0 for record in logged)
