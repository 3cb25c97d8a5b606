"""BalConpas against the published losses, pseudo-labels and distilled queries."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded_decoder import decode, state_of
from shrunken_params import encoder
from test_mib import columns, of_published, stage_of
from tiny import plain_config

from simcis_jax import main
from simcis_jax.losses.segmentation import Matches
from simcis_jax.losses.weights import LossWeights
from simcis_jax.methods import balconpas, base, pseudo_label
from simcis_jax.methods.balconpas import BalConpas
from simcis_jax.methods.pseudo_label import PseudoLabel
from simcis_jax.methods.step import Step
from simcis_jax.model.class_logits import without_unseen
from simcis_jax.port import growing_models
from simcis_jax.settings.validated import from_config
from simcis_jax.types import Batch, Predictions, Selection, Targets

GOLDEN = Path(__file__).parent / 'golden' / 'balconpas.npz'
SLOTS, LAYERS = 8, 3
CLASS_CASES = (
    'no_replay', 'none', 'one_replay', 'two_replay', 'all_replay', 'replay_without_match',
    'no_free_query_left',
)  # fmt: skip
PSEUDO_CASES = (
    'current_images', 'one_replay', 'replay_with_current', 'empty_ground_truth',
    'ground_truth_everywhere', 'teacher_sees_nothing',
)  # fmt: skip


@pytest.fixture(scope='module')
def golden():
    return dict(np.load(GOLDEN))


def predictions(class_logits, masks=None, queries=None):
    """Predictions of class logits [L, B, Q, C + 1], mask logits [B, Q, h, w] and queries.

    The mask features are one-hot, so that the embeddings are the masks.
    """
    features = embeddings = None
    if masks is not None:
        images, num_queries, height, width = masks.shape
        one_hot = jnp.eye(height * width).reshape(height, width, -1)
        features = jnp.broadcast_to(one_hot, (images, *one_hot.shape))
        embeddings = jnp.asarray(masks).reshape(1, images, num_queries, -1)
    return Predictions(
        class_logits=class_logits,
        mask_embeddings=embeddings,
        boxes=None,
        virtual_class_logits=None,
        mask_features=features,
        selection=Selection(None, None, None),
        head='softmax',
        queries=queries,
    )


def targets_of(labels, segment_map=None):
    """Targets with the labels of each image, in its first slots."""
    labels = [np.pad(x, (0, SLOTS - len(x)), constant_values=-1) for x in labels]
    labels = jnp.asarray(np.stack(labels), jnp.int32)
    if segment_map is None:
        segment_map = np.zeros((len(labels), 8, 8))
    boxes, dropped = jnp.zeros((*labels.shape, 4)), jnp.zeros(len(labels), jnp.int32)
    return Targets(jnp.asarray(segment_map, jnp.uint8), labels, boxes, dropped)


# Class loss


@pytest.mark.parametrize('case', CLASS_CASES)
def test_class_loss_and_gradient_are_those_of_the_published_code(golden, case, monkeypatch):
    logits, query_labels, is_replay = (
        golden[f'class_{case}/{x}'] for x in ('logits', 'query_labels', 'is_replay')
    )
    num_seen = logits.shape[-1] - 1
    monkeypatch.setattr(balconpas, 'is_replayed', lambda step: jnp.asarray(is_replay))
    matched = [np.flatnonzero(labels < num_seen) for labels in query_labels]
    queries = np.stack([np.pad(x, (0, SLOTS - len(x))) for x in matched])
    truth = targets_of([labels[x] for labels, x in zip(query_labels, matched, strict=True)])
    stage = stage_of(3, num_seen)
    step = Step(
        weights=LossWeights(classification=2.0),
        stage=stage,
        targets=distilled(truth),
        teacher=predictions(jnp.zeros((1, *logits.shape))),
        matches=Matches(jnp.asarray(queries)[None], jnp.int32(0)),
    )
    method = BalConpas()
    step = step.replace(totals=method.totals(step))
    num_targets = sum(map(len, matched))
    total = num_targets + 0.1 * (query_labels.size - num_targets)

    @jax.jit
    @jax.value_and_grad
    def loss(x):
        student = predictions(without_unseen(x, stage.seen)[None])
        term = method.class_term(step.replace(student=student))
        assert (term.weight, term.per) == (2.0, 'class')
        return term.sum[0] / total

    value, gradient = loss(columns(logits, len(stage.past)))
    np.testing.assert_allclose(value, golden[f'class_{case}/loss'], rtol=1e-5)
    recorded = golden[f'class_{case}/grad']
    atol = 1e-4 * np.abs(recorded).max()
    gradient = of_published(np.asarray(gradient), num_seen)
    np.testing.assert_allclose(gradient, recorded, rtol=1e-4, atol=atol)


def distilled(truth):
    """Targets of which none is distilled."""
    fields = truth.segment_map, truth.labels, truth.boxes, truth.dropped
    return balconpas.DistilledTargets(*fields, jnp.zeros(truth.labels.shape, bool))


# A step


def with_pseudo_labels(truth, labels):
    """The targets with pseudo-labels of each image behind the ground truth."""
    given = [np.asarray(x[x >= 0]) for x in truth.labels]
    return targets_of([np.append(x, y) for x, y in zip(given, labels, strict=True)])


def recorded_step(golden, case, method, monkeypatch):
    """The step of a recorded case without student, its class logits and queries."""
    case = f'criterion_{case}'
    images = len(golden[f'{case}/is_replay'])
    pseudo, truth = (
        [golden[f'{case}/{kind}_labels{i}'] for i in range(images)] for kind in ('pseudo', 'gt')
    )
    logits, student, teacher = (
        np.stack([golden[f'{case}/{name}{i}'] for i in range(LAYERS)])
        for name in ('logits', 'tokens', 'teacher_tokens')
    )
    student, teacher = (np.swapaxes(x, 1, 2) for x in (student, teacher))
    num_seen = logits.shape[-1] - 1
    current = golden[f'{case}/current']
    stage = stage_of(int(current[0]), num_seen)
    np.testing.assert_array_equal(np.flatnonzero(stage.current), current)
    monkeypatch.setattr(
        pseudo_label,
        'merge_targets',
        lambda _, truth, *__, **___: with_pseudo_labels(truth, pseudo),
    )
    step = Step(
        weights=LossWeights(classification=2.0),
        stage=stage,
        batch=Batch(None, targets_of(truth)),
        teacher=predictions(jnp.zeros((1, *logits.shape[1:])), queries=jnp.asarray(teacher)),
        key=jax.random.key(0),
        rows=jnp.arange(images),
    )
    step = step.replace(targets=method.targets(step))
    step = step.replace(totals=method.totals(step))
    queries = np.zeros((LAYERS, images, SLOTS), np.int32)
    for layer in range(LAYERS):
        for image, replay in enumerate(golden[f'{case}/is_replay']):
            rows, slots = golden[f'{case}/match{layer}_image{image}']
            if not replay:  # The published targets begin with the pseudo-labels.
                num_pseudo, num_truth = len(pseudo[image]), len(truth[image])
                slots = (slots - num_pseudo) % (num_pseudo + num_truth)
            queries[layer, image, slots] = rows
    step = step.replace(matches=Matches(jnp.asarray(queries), jnp.int32(0)))
    return step, logits, student


@pytest.mark.parametrize(
    'case', ['current_only', 'with_replay', 'with_empty', 'all_replay', 'no_pseudo_label']
)
def test_terms_and_gradients_of_a_step_are_those_of_the_published_code(golden, case, monkeypatch):
    basic = dict.fromkeys(('class', 'mask', 'dice'), jnp.zeros(LAYERS))
    monkeypatch.setattr(base, 'segmentation_losses', lambda *_, **__: basic)
    method = BalConpas()
    step, logits, tokens = recorded_step(golden, case, method, monkeypatch)
    num_seen = logits.shape[-1] - 1
    num_targets = int(step.totals['target'])
    num_queries = logits.shape[1] * logits.shape[2]
    totals = step.totals | {'class': num_targets + 0.1 * (num_queries - num_targets)}

    def total(logits, tokens):
        student = predictions(without_unseen(logits, step.stage.seen), queries=tokens)
        terms = method.losses(step.replace(student=student))
        losses = {  # As the train step.
            name: term.sum / jnp.where(totals[term.per] > 0, totals[term.per], 1)
            for name, term in terms.items()
        }
        return sum(terms[name].weight * x.sum() for name, x in losses.items()), losses

    gradient_of = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    inputs = columns(logits, len(step.stage.past)), jnp.asarray(tokens)
    (_, losses), (to_logits, to_tokens) = gradient_of(*inputs)
    case = f'criterion_{case}'

    def recorded(name):
        return [golden[f'{case}/loss/{name}{tail}'] for tail in ('_0', '_1', '')]

    np.testing.assert_allclose(losses['class'], recorded('loss_ce'), rtol=1e-5)
    gradients = [
        np.stack([golden[f'{case}/grad_{name}{i}'] for i in range(LAYERS)])
        for name in ('logits', 'tokens')
    ]
    assert_near(of_published(np.asarray(to_logits), num_seen), gradients[0])
    if np.isnan(recorded('loss_med_tokens')).any():  # Nothing to distil.
        assert not losses['distillation'].any() and not to_tokens.any()
    else:
        np.testing.assert_allclose(losses['distillation'], recorded('loss_med_tokens'), rtol=1e-5)
        assert_near(to_tokens, np.swapaxes(gradients[1], 1, 2))


def assert_near(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def test_all_past_segments_of_a_replayed_image_can_be_distilled(golden, monkeypatch):
    step, *_ = recorded_step(golden, 'with_replay', BalConpas(), monkeypatch)
    assert step.targets.labels[1, :3].tolist() == [0, 2, 1]  # The teacher sees two.
    assert step.targets.distilled.sum(axis=1).tolist() == [2, 2, 1]
    everything = BalConpas(distil_all_replayed=True).targets(step)
    assert everything.distilled.sum(axis=1).tolist() == [2, 3, 1]
    for image in (0, 2):
        np.testing.assert_array_equal(everything.distilled[image], step.targets.distilled[image])


def test_without_anti_misguidance_the_class_loss_is_the_basic_one(golden, monkeypatch):
    basic = {'class': jnp.arange(LAYERS)}
    monkeypatch.setattr(base, 'segmentation_losses', lambda *_, **__: basic)
    method = BalConpas(anti_misguidance=False, distillation_weight=3.0)
    step, logits, tokens = recorded_step(golden, 'with_replay', method, monkeypatch)
    student = predictions(jnp.asarray(logits), queries=jnp.asarray(tokens))
    terms = method.losses(step.replace(student=student))
    assert terms.keys() == {'class', 'distillation'} and terms['class'].sum is basic['class']
    assert (terms['distillation'].weight, terms['distillation'].per) == (3.0, 'distilled')
    assert method.losses(step.replace(student=student, teacher=None)).keys() == {'class'}


# Pseudo-labels


@pytest.mark.parametrize('case', PSEUDO_CASES)
def test_pseudo_labels_are_those_of_the_published_code(golden, case):
    recorded = {
        name.removeprefix(f'pseudo_{case}/'): x
        for name, x in golden.items()
        if name.startswith(f'pseudo_{case}/')
    }
    logits, current = recorded['class_logits'], recorded['current']
    stage = stage_of(int(current[0]), int(current[-1]) + 1)
    teacher = without_unseen(columns(logits, len(stage.past)), stage.past)
    maps = [
        sum((i + 1) * mask for i, mask in enumerate(recorded[f'gt_masks{image}']))
        + np.zeros(recorded[f'gt_masks{image}'].shape[1:])
        for image in (0, 1)
    ]
    truth = targets_of([recorded[f'gt_labels{image}'] for image in (0, 1)], np.stack(maps))
    step = Step(
        stage=stage,
        batch=Batch(None, truth),
        teacher=predictions(teacher[None], recorded['mask_logits']),
    )
    method = BalConpas()
    found = jax.jit(method.targets)(step)
    nothing = targets_of([[], []], np.zeros_like(maps))
    unlabelled = step.replace(batch=step.batch.replace(targets=nothing))
    alone = jax.jit(lambda step: PseudoLabel.targets(method, step))(unlabelled)
    replay = balconpas.is_replayed(step)
    for image in (0, 1):
        labels, masks = (recorded[f'pseudo_{x}{image}'] for x in ('labels', 'masks'))
        num_truth = len(recorded[f'gt_labels{image}'])
        assert replay[image] == recorded[f'is_replay{image}']
        if replay[image]:
            assert_slots(alone, image, 0, labels, masks)
            assert (found.segment_map[image] == truth.segment_map[image]).all()
            assert (found.labels[image] == truth.labels[image]).all()
            assert found.distilled[image].sum() == min(len(labels), num_truth)
        else:
            assert_slots(found, image, num_truth, labels, masks)
            assert np.flatnonzero(found.distilled[image]).tolist() == [
                *range(num_truth, num_truth + len(labels))
            ]


def assert_slots(targets, image, first, labels, masks):
    """Asserts that an image has exactly these segments from a slot on, in this order."""
    found = targets.labels[image, first:]
    assert found[found >= 0].tolist() == labels.tolist()
    for slot, mask in enumerate(masks, start=first):
        np.testing.assert_array_equal(targets.segment_map[image] == slot + 1, mask)


# Decoder


def test_distilled_queries_are_those_of_the_published_decoder(golden):
    layers = 3
    params, classes = growing_models.read('recorded', state_of(golden) | encoder()[1])
    assert classes == (3, 2, 2)
    recorded, outputs, _ = decode(golden, params, num_classes=7, layers=layers)
    for layer in range(layers + 1):
        theirs = np.swapaxes(recorded[f'tokens{layer}'], 0, 1)
        np.testing.assert_allclose(outputs.queries[layer], theirs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs.class_logits[-1], recorded['logits3'], rtol=1e-5, atol=1e-5)


# Settings and runs


def test_a_memory_in_megabytes_is_refused():
    changes = {'protocol.replay_megabytes': 1.0}
    message = (
        "^protocol.replay_megabytes=1.0 must be 0 with method.name='balconpas', whose memory has a "
        'number of images: set protocol.replay_images.$'
    )
    with pytest.raises(ValueError, match=message):
        from_config(plain_config('balconpas', **changes).to_dict())
    changes['method.balconpas.proportional_memory'] = False
    from_config(plain_config('balconpas', **changes).to_dict())


@pytest.mark.slow
@pytest.mark.parametrize('num_images', [0, 5])
def test_a_run_of_three_stages(tmp_path, num_images):
    config = plain_config('balconpas', **{'protocol.replay_images': num_images})
    results = main.run(config, str(tmp_path))
    assert len(results['stages']) == 3
    logged = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').open()]
    assert all(('distillation' in record) == (record['stage'] > 1) for record in logged)
    assert all(record['skipped_steps'] == 0 for record in logged)
    for stage in (2, 3) if num_images else ():
        replayed = json.loads((tmp_path / f'stage_{stage}' / 'replay.json').read_text())
        assert replayed['num_images'] == num_images
