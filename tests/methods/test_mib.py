"""MiB against the published losses, and its new rows of the class head."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import plain_config, tiny_config

from simcis_jax import main
from simcis_jax.losses.classification import focal_cross_entropy
from simcis_jax.losses.segmentation import Matches
from simcis_jax.losses.unbiased import unbiased_cross_entropy, unbiased_distillation
from simcis_jax.losses.weights import LossWeights
from simcis_jax.methods import base
from simcis_jax.methods.base import Method
from simcis_jax.methods.mib import MiB
from simcis_jax.methods.step import Step
from simcis_jax.model.class_logits import without_unseen
from simcis_jax.settings.validated import from_config
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.types import Predictions, Selection, StageArrays, Targets, TrainState

GOLDEN = Path(__file__).parent / 'golden' / 'mib.npz'
CASES = (
    'random0',
    'random1',
    'random2',
    'all_no_object',
    'teacher_sure_no_object',
    'student_equals_teacher',
)
FUTURE = 2  # Classes that come later: columns which the published head does not have yet.


@pytest.fixture(scope='module')
def golden():
    return dict(np.load(GOLDEN))


def stage_of(num_old, num_seen):
    classes = jnp.arange(num_seen + FUTURE)
    past = classes < num_old
    return StageArrays(past, (classes < num_seen) & ~past, jnp.int32(1), jnp.float32(1))


def columns(published, num_classes):
    """Logits with columns of all classes; those that the published head lacks are random."""
    missing = num_classes + 1 - published.shape[-1]
    shape = (*published.shape[:-1], missing)
    other = 3 * jax.random.normal(jax.random.key(1), shape)
    return jnp.concatenate([published[..., :-1], other, published[..., -1:]], axis=-1)


def of_published(gradient, num_seen):
    """The columns of the published head; the others must have no gradient."""
    assert not gradient[..., num_seen:-1].any()
    return np.concatenate([gradient[..., :num_seen], gradient[..., -1:]], axis=-1)


def losses_of(golden, case):
    """The three losses of a case as functions of the student's logits, the logits and C."""
    student, teacher, target = (golden[f'{case}/{x}'] for x in ('student', 'teacher', 'target'))
    num_seen = student.shape[-1] - 1
    stage = stage_of(int(golden[f'{case}/num_old']), num_seen)
    num_classes = len(stage.past)
    labels = jnp.asarray(np.where(target == num_seen, -1, target))
    weights = jnp.where(labels >= 0, 1.0, 0.1)
    teacher = without_unseen(columns(teacher, num_classes), stage.past)

    def entropy(x):
        return unbiased_cross_entropy(without_unseen(x, stage.seen), labels, stage.past)

    def distillation(x):
        x = without_unseen(x, stage.seen)
        return unbiased_distillation(x, teacher, stage.past).mean()

    return (
        {
            'uce_weighted': lambda x: (weights * entropy(x)).sum() / weights.sum(),
            'focal_uce_a5_g1': lambda x: focal_cross_entropy(entropy(x)).mean(),
            'ukd': distillation,
        },
        columns(student, num_classes),
        num_seen,
    )


@pytest.mark.parametrize('case', CASES)
def test_losses_and_gradients_are_those_of_the_published_code(golden, case):
    functions, student, num_seen = losses_of(golden, case)

    @jax.jit
    def all_losses(x):
        return {name: jax.value_and_grad(loss)(x) for name, loss in functions.items()}

    for name, (value, gradient) in all_losses(student).items():
        np.testing.assert_allclose(value, golden[f'{case}/{name}'], rtol=1e-5, atol=1e-6)
        gradient = of_published(np.asarray(gradient), num_seen)
        if case != 'random1':  # Its gradients were not recorded.
            recorded = golden[f'{case}/{name}_grad']
            atol = max(1e-4 * np.abs(recorded).max(), 1e-7)
            np.testing.assert_allclose(gradient, recorded, rtol=1e-4, atol=atol)


@pytest.mark.parametrize('case', ['mib', 'mib_focal'])
def test_terms_and_gradient_of_a_step_are_those_of_the_published_code(golden, case, monkeypatch):
    basic = dict.fromkeys(('class', 'mask', 'dice'), jnp.zeros(3))
    monkeypatch.setattr(base, 'segmentation_losses', lambda *_, **__: basic)
    case = f'criterion_{case}'
    layers, images, slots = 3, 3, 5
    published = jnp.stack([golden[f'{case}/student_logits{i}'] for i in range(layers)])
    num_seen = published.shape[-1] - 1
    stage = stage_of(int(golden[f'{case}/num_old']), num_seen)
    num_classes = len(stage.past)
    queries = np.zeros((layers, images, slots), np.int32)
    labels = np.full((images, slots), -1)
    for image in range(images):
        truth = golden[f'{case}/labels{image}']
        labels[image, : len(truth)] = truth
        for layer in range(layers):
            rows, targets = golden[f'{case}/match{layer}_image{image}']
            queries[layer, image, targets] = rows
    targets = Targets(jnp.zeros((images, 8, 8), jnp.uint8), jnp.asarray(labels), None, None)
    teacher = without_unseen(columns(golden[f'{case}/teacher_logits'], num_classes), stage.past)
    step = Step(
        weights=LossWeights(classification=2.0),
        stage=stage,
        targets=targets,
        teacher=predictions(teacher[None]),
        matches=Matches(jnp.asarray(queries), jnp.int32(0)),
        key=jax.random.key(0),
        rows=jnp.arange(images),
    )
    num_queries, num_targets = images * published.shape[2], (labels >= 0).sum()
    totals = {
        'image': images,
        'target': num_targets,
        'class': num_targets + 0.1 * (num_queries - num_targets),
    }
    method = MiB(focal_cross_entropy=case.endswith('focal'))

    def total(x):
        terms = method.losses(step.replace(student=predictions(without_unseen(x, stage.seen))))
        losses = {name: term.sum / totals[term.per] for name, term in terms.items()}
        return sum(terms[name].weight * x.sum() for name, x in losses.items()), losses

    gradient_of = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, losses), gradient = gradient_of(columns(published, num_classes))
    recorded = [golden[f'{case}/loss/loss_ce{tail}'] for tail in ('_0', '_1', '')]
    np.testing.assert_allclose(losses['class'], recorded, rtol=1e-5)
    recorded = golden[f'{case}/loss/loss_kd']
    np.testing.assert_allclose(losses['distillation'], recorded, rtol=1e-5)
    gradient = of_published(np.asarray(gradient), num_seen)
    recorded = np.stack([golden[f'{case}/grad_logits{i}'] for i in range(layers)])
    atol = 1e-4 * np.abs(recorded).max()
    np.testing.assert_allclose(gradient, recorded, rtol=1e-4, atol=atol)


def predictions(class_logits):
    """Predictions that have nothing but class logits [L, B, Q, C + 1]."""
    return Predictions(
        class_logits=class_logits,
        mask_embeddings=None,
        boxes=None,
        virtual_class_logits=None,
        mask_features=None,
        selection=Selection(None, None, None),
        head='softmax',
    )


def test_stage_1_has_the_losses_of_fine_tuning(monkeypatch):
    basic = {'class': jnp.ones(2)}
    monkeypatch.setattr(base, 'segmentation_losses', lambda *_, **__: basic)
    student = predictions(jnp.zeros((2, 1, 4, 3)))
    step = Step(student=student, key=jax.random.key(0), rows=jnp.arange(1))
    assert MiB().losses(step) == Method().losses(step)


# New rows


def state_of(kernel, bias):
    params = {'heads': {'class_head': {'dense': {'kernel': kernel, 'bias': bias}}, 'kept': 1}}
    return TrainState(jnp.int32(0), params, None, (), jax.random.key(0), jnp.int32(0))


def class_head(state):
    dense = state.params['heads']['class_head']['dense']
    assert state.params['heads']['kept'] == 1
    return np.asarray(dense['kernel']), np.asarray(dense['bias'])


def old_head(golden, case, stage):
    """The published head, whose first row is "no object", with rows of all classes."""
    num_old = int(stage.past.sum())
    weight, bias = golden[f'{case}/old_weight'], golden[f'{case}/old_bias']
    kernel = np.full((weight.shape[1], len(stage.past) + 1), 7.0, np.float32)
    kernel[:, :num_old], kernel[:, -1] = weight[1:].T, weight[0]
    values = np.full(len(stage.past) + 1, 7.0, np.float32)
    values[:num_old], values[-1] = bias[1:], bias[0]
    return jnp.asarray(kernel), jnp.asarray(values), num_old


@pytest.mark.parametrize('case', ['mib_init0', 'mib_init1', 'mib_init2'])
def test_new_rows_are_those_of_the_published_code(golden, case):
    num_old, num_new = len(golden[f'{case}/old_bias']) - 1, len(golden[f'{case}/new_bias'])
    stage = stage_of(num_old, num_old + num_new)
    kernel, bias, num_old = old_head(golden, case, stage)
    new_kernel, new_bias = class_head(MiB().begin_stage(state_of(kernel, bias), stage, None))
    end = num_old + num_new
    for ours, kind in ((new_kernel.T, 'weight'), (new_bias, 'bias')):
        after = golden[f'{case}/after_old_{kind}']
        np.testing.assert_allclose(ours[:num_old], after[1:], rtol=1e-6)
        np.testing.assert_allclose(ours[-1], after[0], rtol=1e-6)
        np.testing.assert_allclose(ours[num_old:end], golden[f'{case}/new_{kind}'], rtol=1e-6)
        assert (ours[end:-1] == 7).all()


@pytest.mark.parametrize('balanced', [True, False])
def test_stage_1_keeps_the_initial_class_head(balanced):
    stage = stage_of(0, 3)
    kernel, bias = jnp.ones((4, 6)), jnp.ones(6)
    state = MiB(balanced_initialization=balanced).begin_stage(state_of(kernel, bias), stage, None)
    for before, after in zip((kernel, bias), class_head(state), strict=True):
        np.testing.assert_array_equal(before, after)


def test_random_rows_are_as_large_as_those_of_a_linear_layer():
    stage, width = stage_of(3, 103), 16
    kernel, bias = jnp.full((width, 106), 7.0), jnp.full(106, 7.0)
    method = MiB(balanced_initialization=False)
    new_kernel, new_bias = class_head(method.begin_stage(state_of(kernel, bias), stage, None))
    new = np.arange(106) // 3 > 0
    new[103:] = False
    assert (new_kernel[:, ~new] == 7).all() and (new_bias[~new] == 7).all()
    for values in (new_kernel[:, new], new_bias[new]):
        assert np.abs(values).max() <= 0.25 and len(np.unique(values)) > 0.99 * values.size
        np.testing.assert_allclose(values.std(), 0.25 / 3**0.5, rtol=0.1)


# Runs


def test_the_sigmoid_head_is_refused():
    config = tiny_config(**{'method.name': 'mib'}).to_dict()
    message = "model.head='sigmoid' must be 'softmax' with method.name='mib'"
    with pytest.raises(ValueError, match=message):
        from_config(config)


@pytest.mark.slow
@pytest.mark.parametrize('method', ['mib', 'plop'])
def test_a_run_of_three_stages(tmp_path, method):
    results = main.run(plain_config(method), str(tmp_path))
    assert len(results['stages']) == 3
    added = {'mib': 'distillation', 'plop': 'pod'}[method]
    logged = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').open()]
    assert all((added in record) == (record['stage'] > 1) for record in logged)
    assert all(record['skipped_steps'] == 0 for record in logged)
    # Stage 2 changes rows that wait for stage 3 by weight decay alone.
    before, after = (head_of(tmp_path, stage)['kernel'][:, 10:12] for stage in (1, 2))
    decay = after / before
    np.testing.assert_allclose(decay, decay[0, 0], rtol=1e-6)
    assert decay.max() < 1


def head_of(workdir, stage):
    with StageCheckpoints(workdir / f'stage_{stage}' / 'checkpoints') as checkpoints:
        return checkpoints.read('params')['heads']['class_head']['dense']
