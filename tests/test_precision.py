"""No product of a train step or of an evaluation has less precision than `precision.py` states."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec
from tiny import tiny_config
from traced import lines, products

from simcis_jax import precision
from simcis_jax.data.evaluation_batches import EvaluationBatch
from simcis_jax.evaluation.evaluator import make_tasks
from simcis_jax.evaluation.inference import BatchPredictor
from simcis_jax.model import deformable_attention
from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.runtime import parallel
from simcis_jax.settings.validated import from_config
from simcis_jax.training.optimizer import make_optimizer
from simcis_jax.training.train_step import make_train_step
from simcis_jax.types import Batch, Categories, StageArrays, Targets, TrainState

FLOAT32, BFLOAT16 = jnp.dtype('float32'), jnp.dtype('bfloat16')
HIGHEST = (lax.Precision.HIGHEST,) * 2


def offence(equation):
    """What is wrong with the precision of a product; None if it is right."""
    types = {x.aval.dtype for x in equation.invars}
    (result,) = equation.outvars
    if types == {FLOAT32}:
        wanted = equation.params['precision'] == HIGHEST and result.aval.dtype == FLOAT32
        return None if wanted else f'float32 with precision {equation.params["precision"]}'
    if types == {BFLOAT16}:  # XLA sums convolutions in float32 in any case.
        convolution = equation.primitive.name == 'conv_general_dilated'
        wanted = result.aval.dtype == (BFLOAT16 if convolution else FLOAT32)
        return None if wanted else f'bfloat16 {equation.primitive.name} to {result.aval.dtype}'
    return f'operands {sorted(map(str, types))}'


def check(function, *inputs):
    """Asserts that all products of a function are as stated; returns their files and operands."""
    found = list(products(jax.make_jaxpr(function)(*inputs)))
    assert found
    wrong = {f'{offence(x)} in {" < ".join(lines(x)[:5])}' for x in found if offence(x)}
    assert not wrong, '\n'.join(sorted(wrong))
    return {(line.split(':')[0], str(x.invars[0].aval.dtype)) for x in found for line in lines(x)}


def with_backward_pass(product):
    """A product as the forward pass of a `custom_vjp`."""
    function = jax.custom_vjp(product)
    function.defvjp(lambda x: (product(x), None), lambda _, gradient: (gradient,))
    return function


HIDDEN = {
    'jit': jax.jit,
    'scan': lambda product: lambda x: lax.scan(lambda y, _: (product(y), None), x, length=2),
    'while_loop': lambda product: lambda x: lax.while_loop(lambda y: y.any(), product, x),
    'cond': lambda product: lambda x: lax.cond(x.any(), product, lambda y: y, x),
    'checkpoint': jax.checkpoint,
    'custom_vjp': with_backward_pass,
    'gradient': lambda product: jax.grad(lambda x: jnp.sin(product(x)).sum()),
    'shard_map': lambda product: jax.shard_map(
        product,
        mesh=parallel.make_mesh(jax.device_count()),
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
    ),
    'pallas_call': lambda product: (
        lambda x: pl.pallas_call(
            lambda x_ref, y_ref: y_ref.__setitem__(..., product(x_ref[...])),
            jax.ShapeDtypeStruct(x.shape, x.dtype),
        )(x)
    ),
}


@pytest.mark.parametrize('where', HIDDEN)
def test_the_walk_finds_a_product_of_default_precision(where):
    x = jnp.ones((8, 8))
    with pytest.raises(AssertionError, match=r'float32 with precision None'):
        check(HIDDEN[where](lambda x: x @ x), x)
    check(HIDDEN[where](lambda x: precision.einsum('ij,jk->ik', x, x)), x)


@pytest.mark.parametrize(
    'product, message',
    [
        (lambda x: x @ x, 'bfloat16 dot_general to bfloat16'),
        (lambda x: jnp.matmul(x, x.astype(FLOAT32), precision='highest'), 'float32'),
        (lambda x: x.astype(jnp.float16) @ x.astype(jnp.float16), 'float16'),
    ],
)
def test_the_walk_finds_products_that_sum_or_mix_wrongly(product, message):
    with pytest.raises(AssertionError, match=message):
        check(product, jnp.ones((8, 8), BFLOAT16))


IMAGES, SIZE, SLOTS = 2, 64, 10
CATEGORIES = Categories(tuple('abcdefgh'), (True, False) * 4, ((0, 0, 0),) * 8)


class Shapes:
    """Settings, network and arguments of a step, as shapes."""

    def __init__(self, **changes):
        self.settings = from_config(tiny_config(**changes).to_dict())
        self.model = Mask2Former(len(CATEGORIES), **self.settings.model)
        self.mesh = parallel.make_mesh(IMAGES)
        labels = np.zeros((IMAGES, SLOTS), np.int32)
        self.batch = Batch(
            np.zeros((IMAGES, SIZE, SIZE, 3), np.uint8),
            Targets(
                np.zeros((IMAGES, SIZE, SIZE), np.uint8),
                labels,
                np.zeros((*labels.shape, 4), np.float32),
                np.zeros(IMAGES, np.int32),
            ),
        )
        past = np.arange(len(CATEGORIES)) < 4
        self.stage = StageArrays(past, ~past, np.int32(10), np.float32(1e-3))
        self.state = jax.eval_shape(self.initial_state)

    def initial_state(self):
        params = self.model.init(jax.random.key(0), self.batch.image)['params']
        opt_state = make_optimizer(params, self.settings.optimizer).init(params)
        memory = self.settings.method.init_memory(len(CATEGORIES), self.model.hidden_dim)
        zero = jnp.int32(0)
        return TrainState(zero, params, opt_state, memory, jax.random.key(0), zero)

    def step(self):
        return make_train_step(
            self.model,
            self.settings.method,
            self.mesh,
            weights=self.settings.weights,
            sampling=self.settings.sampling,
            optimizer=self.settings.optimizer,
        )


# Platforms are chosen after tracing: the trace has the products of all of them.


@pytest.mark.parametrize(
    'dtype, has_teacher',
    [
        ('float32', True),
        pytest.param('bfloat16', True, marks=pytest.mark.slow),
        pytest.param('bfloat16', False, marks=pytest.mark.slow),
    ],
)
def test_products_of_a_train_step(dtype, has_teacher):
    shapes = Shapes(**{'model.dtype': dtype, 'method.simcis.decoder_kl_weight': 1.0})
    teacher = shapes.state.params if has_teacher else None
    found = check(shapes.step(), shapes.state, teacher, shapes.batch, shapes.stage)
    in_float32 = {
        'pixel_decoder.py',
        'prediction_heads.py',
        'resize.py',
        'masks.py',
        'segmentation.py',
    }
    assert found >= {(file, 'float32') for file in in_float32}
    assert found >= {(file, dtype) for file in ('resnet.py', 'attention.py')}


def test_only_products_of_the_pixel_decoder_have_less_precision_if_it_does():
    high = (lax.Precision.HIGH,) * 2
    shapes = Shapes(**{'model.pixel_decoder_precision': 'high'})
    params = shapes.state.params

    def precisions(function, *inputs):
        jaxpr = jax.make_jaxpr(function)(*inputs)
        return collections.Counter(x.params['precision'] for x in products(jaxpr))

    def predict(params):
        return shapes.model.apply({'params': params}, shapes.batch.image)

    def apply(method):
        return lambda params, x: shapes.model.apply({'params': params}, x, method=method)

    image = shapes.batch.image.astype(np.float32)
    maps = jax.eval_shape(apply(lambda model, x: model.backbone_maps(x)), params, image)
    whole = precisions(predict, params)
    part = precisions(apply(lambda model, x: model.pixel_decoder(x)), params, maps)
    assert whole[high] == part[high] > 10
    assert whole.keys() == part.keys() == {high, HIGHEST}


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_products_of_an_evaluation(dtype):
    changes = {'model.dtype': dtype, 'evaluation.tasks': ('panoptic', 'semantic', 'instance')}
    shapes = Shapes(**changes)
    tasks = make_tasks(CATEGORIES, shapes.settings.evaluation)
    predict = BatchPredictor(
        shapes.model, shapes.mesh, list(tasks.values()), shapes.settings.method, 0.5
    )
    sizes = np.full((IMAGES, 2), SIZE, np.int32)
    batch = EvaluationBatch(shapes.batch.image, sizes, sizes, (SIZE, SIZE), (0, 1), [])
    found = check(
        lambda params, seen: predict(params, seen, batch), shapes.state.params, shapes.stage.seen
    )
    assert found >= {('postprocess.py', 'float32'), ('attention.py', dtype)}


@pytest.mark.parametrize('implementation', deformable_attention.IMPLEMENTATIONS)
def test_products_of_deformable_attention(implementation):
    def total(value, locations, weights):
        return deformable_attention.deformable_attention(
            value, ((4, 4),), locations, weights, implementation
        ).sum()

    inputs = jnp.ones((1, 16, 2, 4)), jnp.ones((1, 3, 2, 1, 2, 2)), jnp.ones((1, 3, 2, 1, 2))
    jaxpr = jax.make_jaxpr(jax.grad(total, argnums=(0, 1, 2)))(*inputs)
    assert [offence(x) for x in products(jaxpr) if offence(x)] == []


def test_the_gradients_of_a_product_have_its_precision():
    def loss(rows, kernel):
        return precision.matmul(rows, kernel, lax.Precision.HIGH).sum()

    x = jnp.ones((8, 8))
    found = list(products(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, x)))
    assert [x.params['precision'] for x in found] == [(lax.Precision.HIGH,) * 2] * 3


def test_matmul_and_its_gradients_are_float32_sums_of_bfloat16_products():
    rng = np.random.default_rng(0)
    rows, kernel = (jnp.asarray(rng.normal(size=s), BFLOAT16) for s in ((300, 40), (40, 20)))
    gradient = jnp.asarray(rng.normal(size=(300, 20)), BFLOAT16)
    out, pull_back = jax.vjp(precision.matmul, rows, kernel)
    exact = [np.asarray(x, np.float64) for x in (rows, kernel, gradient)]
    expected = exact[0] @ exact[1], exact[2] @ exact[1].T, exact[0].T @ exact[2]
    for actual, wanted in zip((out, *pull_back(gradient)), expected, strict=True):
        assert actual.dtype == BFLOAT16
        np.testing.assert_allclose(np.asarray(actual, np.float64), wanted, rtol=2**-8, atol=1e-4)
