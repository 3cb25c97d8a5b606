"""A train step at the published size on a CPU: ResNet-50, 100 queries, 640 x 640, 150 classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.losses.segmentation import PointSampling
from simcis_jax.losses.weights import LossWeights
from simcis_jax.methods import make_method
from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.runtime import parallel
from simcis_jax.settings.keys import OptimizerSettings
from simcis_jax.training.optimizer import make_optimizer
from simcis_jax.training.train_step import make_train_step
from simcis_jax.types import Batch, StageArrays, Targets, TrainState


@pytest.mark.slow
def test_the_published_network_takes_a_step_with_a_teacher():
    rng = np.random.default_rng(0)
    segment_map = np.zeros((1, 640, 640), np.uint8)
    labels = np.full((1, 100), -1, np.int32)
    boxes = np.zeros((1, 100, 4), np.float32)
    for k in range(6):
        segment_map[0, 100 * k : 100 * k + 80, 40:600] = k + 1
        labels[0, k] = 100 + k
        boxes[0, k] = [0.5, (100 * k + 40) / 640, 560 / 640, 80 / 640]
    image = rng.integers(0, 256, (1, 640, 640, 3)).astype(np.uint8)
    batch = Batch(image, Targets(segment_map, labels, boxes, np.zeros(1, np.int32)))

    model, method, optimizer = Mask2Former(150), make_method('simcis'), OptimizerSettings()
    mesh = parallel.make_mesh(batch_size=1)
    params = jax.jit(model.init)(jax.random.key(0), image)['params']
    assert sum(p.size for p in jax.tree.leaves(params)) > 44e6
    past = np.arange(150) < 100
    stage = StageArrays(past, (np.arange(150) >= 100) & ~past, jnp.int32(1000), jnp.float32(5e-5))
    state = TrainState(
        jnp.int32(0),
        params,
        make_optimizer(params, optimizer).init(params),
        method.init_memory(150, 256),
        jax.random.key(1),
        jnp.int32(0),
    )
    teacher = jax.tree.map(jnp.copy, params)
    before = np.asarray(params['heads']['class_head']['dense']['kernel'])
    step = make_train_step(
        model,
        method,
        mesh,
        weights=LossWeights(),
        sampling=PointSampling(),
        optimizer=optimizer,
    )
    state, metrics = step(
        *parallel.put_replicated(mesh, (state, teacher)),
        parallel.put_batch(mesh, batch),
        parallel.put_replicated(mesh, stage),
    )
    assert np.isfinite([float(value) for value in metrics.values()]).all(), metrics
    assert int(state.memory.written[100:106].sum()) == 6
    assert np.abs(np.asarray(state.params['heads']['class_head']['dense']['kernel']) - before).max()
