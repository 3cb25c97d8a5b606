"""One update: the same numbers however the batch is divided."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from simcis_jax import settings
from simcis_jax.continual import virtual_query
from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.runtime import parallel
from simcis_jax.training import accumulation
from simcis_jax.training.optimizer import make_optimizer
from simcis_jax.training.train_step import TrainState, make_train_step
from simcis_jax.types import Batch, StageArrays, Targets

CLASSES, SIZE, IMAGES = 6, 32, 4


def random_batch(rng):
    """Images with 0 to 3 rectangles each."""
    segment_map = np.zeros((IMAGES, SIZE, SIZE), np.uint8)
    labels = np.full((IMAGES, 10), -1, np.int32)
    boxes = np.zeros((IMAGES, 10, 4), np.float32)
    for image in range(IMAGES):
        for k in range(image):
            segment_map[image, 10 * k : 10 * k + 8, 4:20] = k + 1
            labels[image, k] = 4 + k % 2
            boxes[image, k] = [12 / SIZE, (10 * k + 4) / SIZE, 16 / SIZE, 8 / SIZE]
    image = rng.integers(0, 256, (IMAGES, SIZE, SIZE, 3)).astype(np.uint8)
    return Batch(image, Targets(segment_map, labels, boxes, np.zeros(IMAGES, np.int32)))


@pytest.fixture(scope='module')
def update():
    """Runs one step of a later stage: teacher, CSL, replayed decoder, virtual queries."""
    config = settings.from_config(
        tiny_config(
            **{
                'model.hidden_dim': 16,
                'method.decoder_kl_weight': 2.0,
                'method.pseudo_label_score': 0.0,
                'method.pseudo_label_overlap': 0.0,
                'method.num_virtual_queries': 3,
            }
        ).to_dict()
    )
    model = Mask2Former(CLASSES, **config.model)
    mesh = parallel.make_mesh(IMAGES)
    rng = np.random.default_rng(0)
    batch = random_batch(rng)
    params = jax.jit(model.init)(jax.random.key(0), batch.image)['params']
    teacher = jax.tree.map(lambda x: x + 0.01 * rng.normal(size=x.shape).astype(x.dtype), params)
    memory = config.method.init_memory(CLASSES, 16)
    stored = jnp.asarray(rng.normal(size=(8, 16)), jnp.float32)
    memory = virtual_query.enqueue(memory, stored, jnp.arange(8) % 4)
    past = np.arange(CLASSES) < 4
    stage = StageArrays(past, ~past, jnp.int32(10), jnp.float32(1e-3))

    def run(num_microbatches):
        step = make_train_step(
            model,
            config.method,
            mesh,
            weights=config.weights,
            sampling=config.sampling,
            optimizer=config.optimizer,
            num_microbatches=num_microbatches,
        )
        state = TrainState(
            jnp.int32(0),
            params,
            make_optimizer(params, config.optimizer).init(params),
            memory,
            jax.random.key(1),
            jnp.int32(0),
        )
        state = jax.tree.map(jnp.copy, state)  # The step donates it.
        return step(
            *parallel.put_replicated(mesh, (state, teacher)),
            parallel.put_batch(mesh, batch),
            parallel.put_replicated(mesh, stage),
        )

    return run


def test_accumulated_parts_give_the_update_of_the_whole_batch(update):
    whole_state, whole_metrics = update(1)
    state, metrics = update(2)
    assert int(whole_metrics['targets'] * IMAGES) > 6, 'no pseudo-label took part'
    assert metrics.keys() == whole_metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(value, whole_metrics[name], rtol=2e-5, err_msg=name)
    # Adam's first step is about the sign of a gradient: compare the moments, which are linear.
    for new, old in zip(
        *map(jax.tree.leaves, (state.opt_state, whole_state.opt_state)), strict=True
    ):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(state.memory.written, whole_state.memory.written)
    np.testing.assert_allclose(state.memory.queries, whole_state.memory.queries, atol=1e-5)


@pytest.mark.parametrize('microbatch_size, parts', [(0, 1), (4, 1), (2, 2), (1, 4)])
def test_a_share_is_divided_into_equal_parts(microbatch_size, parts):
    assert accumulation.count_microbatches(8, 2, microbatch_size) == parts


@pytest.mark.parametrize('microbatch_size', [3, 5, -1])
def test_a_share_that_cannot_be_divided_is_refused(microbatch_size):
    with pytest.raises(ValueError, match='microbatch_size=.* does not divide the 4 images'):
        accumulation.count_microbatches(8, 2, microbatch_size)
