"""The losses, the gradients and the start of a stage of ECLIPSE against the published code."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from recorded import key_of_draws
from recorded_eclipse import LAYERS, STAGES, inputs, network, params, stage_of
from shrunken_params import encoder

from simcis_jax.continual.stages import make_stages
from simcis_jax.losses.classification import independent_focal_loss
from simcis_jax.losses.segmentation import PointSampling
from simcis_jax.losses.weights import LossWeights
from simcis_jax.methods.eclipse import CLASS_FACTOR, ECLIPSE
from simcis_jax.methods.step import Step
from simcis_jax.model.prompted_mask2former import PromptedMask2Former
from simcis_jax.port import growing_models
from simcis_jax.port.names import PREDICTOR
from simcis_jax.settings.keys import OptimizerSettings
from simcis_jax.training.optimizer import count_parameters, make_optimizer, without_gradient
from simcis_jax.types import Batch, Targets, TrainState

GOLDEN = Path(__file__).parent / 'golden' / 'eclipse.npz'
SLOTS, NUM_POINTS = 8, 256
CLOSE = dict(rtol=1e-5, atol=2e-5)  # Float32 and float64 differ by 5e-6.


@pytest.fixture(scope='module')
def golden():
    return dict(np.load(GOLDEN))


def frozen_in(stage, tree):
    paths = flatten_dict(tree, sep='/')
    return frozenset(path for path in paths if not ECLIPSE().trainable(path, stage))


# Losses and gradients


def class_loss(logits, labels):
    loss = independent_focal_loss(logits.reshape(-1, logits.shape[-1]), labels.ravel())
    return CLASS_FACTOR * loss / logits.size


def test_the_class_loss_is_that_of_the_published_code(golden):
    logits, labels = jnp.asarray(golden['focal/logits']), golden['focal/labels']
    labels = jnp.where(labels == logits.shape[-1] - 1, -1, labels)
    np.testing.assert_allclose(class_loss(logits, labels), golden['focal/loss'], rtol=1e-5)


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


def targets_of(golden):
    """The recorded targets."""
    maps, labels = np.zeros((2, 128, 160), np.uint8), np.full((2, SLOTS), -1)
    for image in (0, 1):
        masks = np.unpackbits(golden[f'target/{image}/masks_packed'], axis=-1)
        assert masks.sum(axis=0).max() <= 1
        maps[image] = (masks * np.arange(1, len(masks) + 1)[:, None, None]).sum(axis=0)
        labels[image, : len(masks)] = golden[f'target/{image}/labels']
    return Targets(jnp.asarray(maps), jnp.asarray(labels), jnp.zeros((2, SLOTS, 4)), jnp.zeros(2))


class Decoder:
    """A network whose images are the recorded maps."""

    head, stochastic_depth = 'independent', 0.0

    def apply(self, variables, inputs, seen, virtual, rows):
        decode = PromptedMask2Former.decode
        return network().apply(variables, *inputs, seen, rows, method=decode)


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
        batch=Batch(inputs(), targets),
        targets=targets,
        key=jax.random.fold_in(draws(golden), 0),
        rows=jnp.arange(2),
    )


def train(tree, step):
    """The weighted total, and losses, predictions and matches."""
    method = ECLIPSE()
    now = step.replace(params=without_gradient(tree, step.frozen))
    now = now.replace(student=method.predict(now))
    now = now.replace(matches=method.match(now))
    terms, totals = method.losses(now), method.totals(now)
    losses = {name: term.sum / totals[term.per] for name, term in terms.items()}
    total = sum(terms[name].weight * loss.sum() for name, loss in losses.items())
    return total, (losses, now.student, now.matches)


def published(tree):
    """Arrays that are those of parameters after stage 3, by their published names."""
    state = growing_models.write({**tree, **encoder()[0]}, [len(classes) for classes in STAGES])
    return {name.removeprefix(f'{PREDICTOR}.'): x for name, x in state.items()}


@pytest.fixture(scope='module')
def trained(golden):
    """Total, losses, predictions and matches of the recorded step."""
    total, found = jax.jit(train)(params(), step_of(golden, targets_of(golden)))
    return total, *found


def test_predictions_and_matches_are_those_of_the_published_code(golden, trained):
    _, _, student, matches = trained
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


@pytest.mark.slow
def test_gradients_and_update_are_those_of_the_published_code(golden):
    step = step_of(golden, targets_of(golden))
    gradients, _ = jax.jit(jax.grad(train, has_aux=True))(params(), step)
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
    trained, _ = count_parameters(params(), step.frozen)
    moments = [x.size for x in jax.tree.leaves(state)]
    assert sum(moments) == 2 * trained + 1  # And the number of steps.
    gradients, updates = published(gradients), published(updates)
    names = [name.split('/')[1] for name in golden if name.startswith('grad/')]
    assert len(names) > 8
    for name in set(names) - {'norm'}:
        theirs = golden[f'grad/{name}']
        atol = 1e-4 * np.abs(theirs).max()
        np.testing.assert_allclose(gradients[name], theirs, rtol=1e-4, atol=atol, err_msg=name)
        if f'update/{name}' in golden:
            rate, theirs = 5e-4, golden[f'update/{name}']
            ours = rate * updates[name]
            np.testing.assert_allclose(ours, theirs, atol=1e-3 * rate, err_msg=name)


@pytest.mark.parametrize(('output', 'name', 'tail'), [(0, 'initial', '_0'), (1, 'final', '')])
def test_an_image_without_targets_has_the_published_class_loss(golden, output, name, tail):
    logits = jnp.asarray(golden['train/class_logits'][output])
    labels = np.full(logits.shape[:2], -1)
    for image in (0, 1):
        queries, targets = golden[f'one_empty/match/{name}/{image}']
        labels[image, queries] = golden[f'target/{image}/labels'][targets]
    assert (labels[0] >= 0).sum() == 3 and (labels[1] == -1).all()
    np.testing.assert_allclose(
        class_loss(logits, labels), golden[f'one_empty/loss_ce{tail}'], rtol=1e-5
    )


@pytest.mark.slow
def test_all_decoder_outputs_may_have_a_loss(golden):
    step = step_of(golden, targets_of(golden)).replace(params=params())
    shapes = [
        jax.eval_shape(ECLIPSE(all_outputs=x).predict, step).class_logits.shape
        for x in (False, True)
    ]
    assert [shape[0] for shape in shapes] == [2, LAYERS + 1]


def test_replayed_images_are_trained_on_the_classes_of_the_stage(golden):
    step = step_of(golden, targets_of(golden))
    truth = step.batch.targets
    shown = jnp.array([[12, 2, 9, 10, -1, -1, -1, -1]] * 2)
    replayed = step.replace(batch=step.batch.replace(targets=truth.replace(labels=shown)))
    labels = ECLIPSE().targets(replayed).labels
    np.testing.assert_array_equal(labels, [[12, -1, -1, 10, -1, -1, -1, -1]] * 2)
    first = replayed.replace(frozen=frozenset())
    assert ECLIPSE().targets(first) is first.batch.targets


# Stages


def state_of(tree):
    return TrainState(jnp.int32(0), tree, None, (), jax.random.key(0), jnp.int32(0))


def test_a_stage_begins_as_in_the_published_code(golden):
    before = params(2)
    after = ECLIPSE().begin_stage(state_of(before), stage_of(3)[1], None).params
    ours = published(after)
    names = [name.removeprefix('init/') for name in golden if name.startswith('init/')]
    compared = [name for name in names if '.' in name]
    assert len(compared) >= 6
    for name in compared:
        np.testing.assert_allclose(ours[name], golden[f'init/{name}'], rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda stack, old: np.testing.assert_array_equal(stack, [old, jnp.zeros_like(old)]),
        after['finished'],
        before['newest'],
    )
    assert all(after[key] is before[key] for key in before.keys() - {'newest', 'finished'})


def test_one_program_serves_all_later_stages():
    first, second, third = (frozen_in(stage_of(number)[0], params()) for number in (1, 2, 3))
    assert first != second == third


def test_stage_2_has_no_prompts_to_keep():
    after = ECLIPSE().begin_stage(state_of(params()), stage_of(2)[1], None).params
    jax.tree.map(np.testing.assert_array_equal, after['finished'], params()['finished'])


@pytest.mark.parametrize(
    ('settings', 'num_new', 'trained'),
    [
        ({}, 10, 488_971),
        pytest.param({}, 5, 487_686, marks=pytest.mark.slow),
        pytest.param(dict(prompts_per_stage=50), 50, 601_651, marks=pytest.mark.slow),
        pytest.param(dict(train_no_object=False), 10, 488_971 - 131_841, marks=pytest.mark.slow),
    ],
)
def test_a_stage_trains_as_many_parameters_as_published(settings, num_new, trained):
    method, stages = ECLIPSE(**settings), make_stages(100 + num_new, base=100, increment=num_new)
    network = dict(backbone='small', queries='learned', boxes=False, head='softmax')
    model = method.make_model(stages, network)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    tree = jax.eval_shape(model.init, jax.random.key(0), image)['params']
    paths = flatten_dict(tree, sep='/')
    frozen = [frozenset(x for x in paths if not method.trainable(x, stage)) for stage in stages]
    assert count_parameters(tree, frozen[1])[0] == trained
    assert {path.split('/')[0] for path in frozen[0]} == {'newest', 'finished'}
