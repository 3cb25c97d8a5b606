"""The original Mask2Former against arrays that transformers computed with the same weights."""

import functools
from types import SimpleNamespace

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import parity
import plain_weights
import pytest
from recorded import key_of_draws

from simcis_jax.evaluation import postprocess
from simcis_jax.evaluation.soft_sum import class_scores, strongest_class
from simcis_jax.losses.classification import class_weights
from simcis_jax.losses.segmentation import PointSampling, match_targets, segmentation_losses
from simcis_jax.losses.weights import LossWeights
from simcis_jax.methods.step import MATCHING, SAMPLING, Step
from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.model.masked_decoder import decoder_memory
from simcis_jax.model.resize import resize
from simcis_jax.model.swin import stochastic_depth
from simcis_jax.port.architecture import PLAIN
from simcis_jax.port.hugging_face_names import HUGGING_FACE
from simcis_jax.port.torch_weights import to_flax, to_torch
from simcis_jax.precision import einsum
from simcis_jax.types import Targets

TOLERANCE = 1e-4  # Relative norm of the difference.
GRADIENTS = 1e-3
WEIGHTS = LossWeights(classification=2.0, mask=5.0, dice=5.0)
SLOTS, NUM_SETS, NUM_POINTS = 3, plain_weights.NUM_LAYERS + 1, plain_weights.NUM_POINTS
NUM_UNCERTAIN = NUM_POINTS * 3 // 4
TERMS = {'class': 'loss_cross_entropy', 'mask': 'loss_mask', 'dice': 'loss_dice'}


@pytest.fixture(scope='module')
def golden():
    return golden_weights.load('mask2former')


def layout_of(case):
    return HUGGING_FACE['swin' if 'swin' in case.backbone else 'resnet']


def network(case):
    return Mask2Former(
        plain_weights.NUM_CLASSES, backbone=case.backbone, **plain_weights.SMALL, **PLAIN
    )


@functools.lru_cache(maxsize=1)
def inputs(name):
    """The parameters, padded images and sizes of a case."""
    case = plain_weights.CASES[name]
    params = to_flax(plain_weights.file_arrays(name), layout_of(case))
    images = plain_weights.images(case)
    canvas = np.full((case.batch, *plain_weights.padded_size(case), 3), 77, np.uint8)
    canvas[:, : case.size[0], : case.size[1]] = images
    return params, canvas, np.array([case.size] * case.batch)


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, image, size):
    """Predictions and the outputs of all modules."""
    predictions, state = model.apply(
        {'params': params},
        image,
        size=size,
        capture_intermediates=True,
        mutable=['intermediates'],
    )
    inner = state['intermediates']
    maps, mask_features = inner['pixel_decoder']['__call__'][0]
    memory = decoder_memory(maps, params['level_embedding'], mask_features)
    logits = [
        einsum('bqd,bsd->bqs', predictions.mask_embeddings[i], memory.mask_features[i % 3])
        for i in range(NUM_SETS)
    ]
    return predictions, inner, logits


@pytest.fixture(
    scope='module',
    params=['swin_small', 'resnet50', pytest.param('swin_t', marks=pytest.mark.slow)],
)
def observed(request):
    """The outputs of a case under the names of the recorded arrays."""
    case = plain_weights.CASES[request.param]
    predictions, inner, logits = run(network(case), *inputs(request.param))
    backbone = inner['swin' if 'swin' in case.backbone else 'resnet']
    maps, mask_features = inner['pixel_decoder']['__call__'][0]
    arrays = {f'backbone/{i}': x for i, x in enumerate(backbone['__call__'][0])}
    arrays |= {f'map/{i}': x for i, x in enumerate(maps)} | {'mask_features': mask_features}
    for i in range(plain_weights.SMALL['encoder_layers']):
        arrays[f'encoder{i}/0'] = inner['pixel_decoder'][f'layer{i}']['__call__'][0]
    for i in range(plain_weights.NUM_LAYERS):
        arrays[f'decoder{i}/0'] = inner['decoder'][f'layers_{i}']['__call__'][0][0]
    for i in range(NUM_SETS):
        arrays[f'class_logits/{i}'] = predictions.class_logits[i]
        arrays[f'mask_logits/{i}'] = predictions.mask_logits(i)
        arrays[f'blocked/{i}'] = np.packbits(logits[i] < 0)
    return SimpleNamespace(name=request.param, case=case, predictions=predictions, arrays=arrays)


def test_activations_logits_and_attention_masks_equal_transformers(observed, golden):
    for name, array in observed.arrays.items():
        expected = golden[f'{observed.name}/{name}']
        if name.startswith('blocked'):
            np.testing.assert_array_equal(array, expected, err_msg=name)
        else:
            actual = plain_weights.thinned(name, array)
            assert actual.shape == expected.shape, name
            assert parity.relative_error(actual, expected) < TOLERANCE, name


def by_score(labels, scores, areas):
    """Instances with a mask, sorted: scores, labels and areas."""
    found = areas > 0
    columns = scores[found], labels[found], areas[found]
    order = np.lexsort(columns[::-1])
    return [column[order] for column in columns]


def test_semantic_and_instance_results_equal_transformers(observed, golden):
    @jax.jit
    def segment(class_logits, mask_logits):
        masks = resize(mask_logits, (384, 384))  # The fixed size of transformers.
        scores = class_scores(class_logits, masks)
        first, second = jax.lax.top_k(jnp.moveaxis(scores, 0, -1), 2)[0].transpose(2, 0, 1)
        semantic = jnp.where(first - second > 1e-5, strongest_class(scores), -1)
        instances = postprocess.instance_inference(
            class_logits,
            masks,
            is_thing=jnp.ones(plain_weights.NUM_CLASSES, bool),
            num_instances=plain_weights.NUM_QUERIES,
            head='softmax',
        )
        areas = instances.masks.sum(axis=(1, 2))
        # Pixels whose side of the threshold depends on rounding.
        undecided = (jnp.abs(masks) < 1e-4).sum(axis=(1, 2)).max()
        return semantic, instances.labels, instances.scores, areas, undecided

    for image in range(observed.case.batch):
        logits = observed.predictions.class_logits[-1, image]
        masks = observed.predictions.mask_logits(-1)[image]
        semantic, *instances, undecided = map(np.asarray, segment(logits, masks))
        expected = golden[f'{observed.name}/semantic'][image]
        decided = semantic >= 0
        assert (~decided).sum() < 1500  # Of 147,456: their strongest class depends on rounding.
        np.testing.assert_array_equal(semantic[decided], expected[decided])
        recorded = [
            golden[f'{observed.name}/instance_{name}/{image}']
            for name in ('labels', 'scores', 'areas')
        ]
        found, expected = by_score(*instances), by_score(*recorded)
        np.testing.assert_allclose(found[0], expected[0], rtol=2e-5)  # Six recorded decimals.
        np.testing.assert_array_equal(found[1], expected[1])
        assert undecided < 100
        np.testing.assert_allclose(found[2], expected[2], atol=undecided)


def recorded_key(name, golden):
    """A random key that draws the recorded points; see `recorded.key_of_draws`."""
    batch = plain_weights.CASES[name].batch
    labels = plain_weights.targets(plain_weights.CASES[name])[1]
    matching = np.zeros((batch, NUM_SETS, NUM_POINTS, 2), np.float32)
    candidates = np.zeros((batch, NUM_SETS, SLOTS, 3 * NUM_POINTS, 2), np.float32)
    uniform = np.zeros((batch, NUM_SETS, SLOTS, NUM_POINTS - NUM_UNCERTAIN, 2), np.float32)
    for i in range(NUM_SETS):
        drawn = {
            part: plain_weights.points(f'{name} {i} {part}', (sum(map(len, labels)), *shape))
            for part, shape in (
                ('candidates', candidates.shape[3:]),
                ('uniform', uniform.shape[3:]),
            )
        }
        pair = 0
        for image in range(batch):
            matching[image, i] = plain_weights.points(
                f'{name} {i} match{image}', (1, NUM_POINTS, 2)
            )[0]
            for slot in golden[f'{name}/matched/{i}/{image}'][1]:
                candidates[image, i, slot] = drawn['candidates'][pair]
                uniform[image, i, slot] = drawn['uniform'][pair]
                pair += 1
    return key_of_draws(matching, candidates, uniform)


def padded_targets(case):
    maps, labels = plain_weights.targets(case)
    labels = [np.pad(x, (0, SLOTS - len(x)), constant_values=-1) for x in labels]
    boxes = np.zeros((case.batch, SLOTS, 4), np.float32)
    dropped = np.zeros(case.batch, np.int32)
    return Targets(*map(jnp.asarray, (maps, np.stack(labels).astype(np.int32), boxes, dropped)))


@pytest.fixture(
    scope='module',
    params=[
        'swin_small',
        *(pytest.param(x, marks=pytest.mark.slow) for x in ('swin_t', 'resnet50')),
    ],
)
def step(golden, request):
    """Losses, matched queries and gradients of a case; a third image has no targets."""
    name = request.param
    case = plain_weights.CASES[name]
    model, (params, image, size) = network(case), inputs(name)
    targets, key = padded_targets(case), recorded_key(name, golden)
    num_targets = targets.valid.sum()

    def loss(params):
        predictions = model.apply({'params': params}, image, size=size)
        step = Step(key=jax.random.fold_in(key, 0), rows=jnp.arange(case.batch))
        matches = match_targets(
            predictions,
            targets,
            step.keys(MATCHING),
            weights=WEIGHTS,
            num_points=NUM_POINTS,
        )
        terms = segmentation_losses(
            predictions,
            targets,
            matches,
            step.keys(SAMPLING),
            sampling=PointSampling(num_points=NUM_POINTS),
        )
        assert terms.keys() == TERMS.keys()
        of_class = class_weights(num_targets, case.batch * model.num_queries, 0.1)
        weights = WEIGHTS.by_term()
        terms = {
            name: weights[name] * term / (of_class if name == 'class' else num_targets)
            for name, term in terms.items()
        }
        return sum(term.sum() for term in terms.values()), (terms, matches.queries)

    (total, (terms, queries)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return SimpleNamespace(
        name=name, case=case, total=total, terms=terms, queries=queries, gradients=gradients
    )


def test_matches_and_losses_equal_transformers(step, golden):
    for i in range(NUM_SETS):
        for image in range(step.case.batch):
            queries, slots = golden[f'{step.name}/matched/{i}/{image}']
            np.testing.assert_array_equal(np.asarray(step.queries)[i, image, slots], queries)
        suffix = f'_{i}' if i < NUM_SETS - 1 else ''
        for name, term in step.terms.items():
            expected = golden[f'{step.name}/{TERMS[name]}{suffix}']
            np.testing.assert_allclose(term[i], expected, rtol=1e-5, err_msg=f'{name} {i}')
    np.testing.assert_allclose(step.total, golden[f'{step.name}/loss'], rtol=1e-5)


def test_gradients_equal_transformers(step, golden):
    gradients = to_torch(jax.tree.map(np.asarray, step.gradients), layout_of(step.case))
    names = [name.split('/', 2)[2] for name in golden if name.startswith(f'{step.name}/gradient/')]
    assert len(names) > 150
    largest = max(float(golden[f'{step.name}/gradient_norm/{name}']) for name in names)
    for name in names:
        norm = float(golden[f'{step.name}/gradient_norm/{name}'])
        actual = np.linalg.norm(gradients[name].astype(np.float64))
        assert abs(actual - norm) <= GRADIENTS * norm + 1e-6 * largest, name
        flat = gradients[name].reshape(-1)
        expected = golden[f'{step.name}/gradient/{name}']
        difference = np.abs(flat[:: max(1, flat.size // 8) | 1] - expected)
        assert difference.max() <= GRADIENTS * np.abs(gradients[name]).max() + 1e-6 * largest, name


def test_stochastic_depth_is_one_on_average_and_never_drops_the_first_block():
    factors = stochastic_depth(jax.random.split(jax.random.key(0), 4000), 4, 0.3)
    assert factors.shape == (4, 2, 4000)
    np.testing.assert_allclose(factors.mean(axis=-1), 1.0, atol=0.05)
    rates = np.array([0, 0.1, 0.2, 0.3])[:, None]
    np.testing.assert_allclose((factors == 0).mean(axis=-1), rates + np.zeros(2), atol=0.03)


@pytest.mark.slow
def test_blocks_are_dropped_only_with_keys():
    case = plain_weights.CASES['swin_small']
    params, image, size = inputs('swin_small')
    model = network(case).clone(stochastic_depth=0.9)

    @jax.jit
    def predict(params, keys):
        return model.apply({'params': params}, image, size=size, depth_keys=keys).class_logits[-1]

    keys = jax.random.split(jax.random.key(0), case.batch)
    both = predict(params, keys)
    np.testing.assert_array_equal(predict(params, keys), both)  # The keys decide alone.
    assert not np.allclose(predict(params, keys[::-1]), both, atol=1e-3)
    whole, _, _ = run(network(case), params, image, size)
    assert not np.allclose(whole.class_logits[-1], both, atol=1e-3)
    np.testing.assert_allclose(predict(params, None), whole.class_logits[-1], rtol=1e-4, atol=1e-4)
