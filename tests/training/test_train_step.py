"""The train step and the class statistics step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from simcis_jax.continual import virtual_query
from simcis_jax.methods.step import MATCHING, METHOD, REPLAY, SAMPLING, Step
from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.runtime import parallel
from simcis_jax.settings.validated import from_config
from simcis_jax.training import accumulation
from simcis_jax.training.optimizer import make_optimizer
from simcis_jax.training.train_step import (
    make_statistics_step,
    make_train_step,
    teacher_predictions,
)
from simcis_jax.types import Batch, StageArrays, Targets, TrainState

CLASSES, SIZE, IMAGES = 8, 32, 4
PAST, CURRENT = (0, 1, 3, 6), (4, 5)  # Most tokens look like class 2, which is not seen yet.


def random_batch(rng):
    """Images with 0 to 3 rectangles each."""
    segment_map = np.zeros((IMAGES, SIZE, SIZE), np.uint8)
    labels = np.full((IMAGES, 10), -1, np.int32)
    boxes = np.zeros((IMAGES, 10, 4), np.float32)
    for image in range(IMAGES):
        for k in range(image):
            segment_map[image, 10 * k : 10 * k + 8, 4:20] = k + 1
            labels[image, k] = CURRENT[k % 2]
            boxes[image, k] = [12 / SIZE, (10 * k + 4) / SIZE, 16 / SIZE, 8 / SIZE]
    image = rng.integers(0, 256, (IMAGES, SIZE, SIZE, 3)).astype(np.uint8)
    return Batch(image, Targets(segment_map, labels, boxes, np.zeros(IMAGES, np.int32)))


class Update:
    """One step of a later stage, with teacher, CSL and virtual queries."""

    def __init__(self, **changes):
        config = from_config(
            tiny_config(
                **{
                    'model.hidden_dim': 16,
                    'model.encoder_layers': 0,
                    'model.decoder_layers': 1,
                    'method.simcis.pseudo_label_score': 0.0,
                    'method.simcis.pseudo_label_overlap': 0.0,
                    'method.simcis.num_virtual_queries': 3,
                }
                | changes
            ).to_dict()
        )
        self.config, self.method = config, config.method
        self.model = Mask2Former(CLASSES, **config.model)
        self.mesh = parallel.make_mesh(IMAGES)
        rng = np.random.default_rng(0)
        self.batch = random_batch(rng)
        initial = jax.jit(self.model.init)(jax.random.key(0), self.batch.image)['params']

        def perturbed(scale):
            def add_noise(x):
                return x + scale * rng.normal(size=x.shape).astype(x.dtype)

            return jax.tree.map(add_noise, initial)

        # Initial sampling points lie on pixels, where rounding decides the gradient.
        params, self.teacher = perturbed(0.001), perturbed(0.01)
        memory = config.method.init_memory(CLASSES, 16)
        stored = jnp.asarray(rng.normal(size=(8, 16)), jnp.float32)
        memory = virtual_query.enqueue(memory, stored, jnp.array(PAST * 2))
        past, current = (np.isin(np.arange(CLASSES), classes) for classes in (PAST, CURRENT))
        self.stage = StageArrays(past, current, jnp.int32(10), jnp.float32(1e-3))
        opt_state = make_optimizer(params, config.optimizer).init(params)
        key = jax.random.key(1)
        self.state = TrainState(jnp.int32(0), params, opt_state, memory, key, jnp.int32(0))
        self.step = functools.cache(self.step)

    def step(self, num_microbatches):
        """The compiled step."""
        return make_train_step(
            self.model,
            self.method,
            self.mesh,
            weights=self.config.weights,
            sampling=self.config.sampling,
            optimizer=self.config.optimizer,
            num_microbatches=num_microbatches,
        )

    def arguments(self, batch=None):
        """Of the step, which donates the state."""
        state = jax.tree.map(jnp.copy, self.state)
        return (
            *parallel.put_replicated(self.mesh, (state, self.teacher)),
            parallel.put_batch(self.mesh, batch or self.batch),
            parallel.put_replicated(self.mesh, self.stage),
        )

    def __call__(self, num_microbatches=1, batch=None):
        """The state after the step, and its metrics."""
        return self.step(num_microbatches)(*self.arguments(batch))

    @functools.cached_property
    def predict(self):
        """The compiled network as a function of parameters and the mask of selecting classes."""
        return jax.jit(
            lambda params, selecting: self.model.apply(
                {'params': params}, self.batch.image, selecting
            )
        )


def test_random_keys_differ_between_images_steps_and_streams():
    def numbers(step, stream, rows=(0, 1, 2, 3)):
        step = Step(key=jax.random.fold_in(jax.random.key(5), step), rows=jnp.array(rows))
        return np.asarray(jax.random.key_data(step.keys(stream)))

    streams = MATCHING, SAMPLING, REPLAY, METHOD, METHOD + 1
    drawn = [numbers(step, stream) for step in (0, 1, 2) for stream in streams]
    drawn = np.concatenate(drawn)
    assert len(np.unique(drawn, axis=0)) == len(drawn)
    # They depend on the row in the global batch, not on the device.
    np.testing.assert_array_equal(numbers(1, REPLAY, rows=(2, 3)), numbers(1, REPLAY)[2:])


@pytest.fixture(scope='module')
def update():
    return Update()


@pytest.fixture(scope='module')
def update_with_kl():
    return Update(**{'method.simcis.decoder_kl_weight': 2.0})


@pytest.mark.slow  # Compiles the step twice.
def test_microbatches_give_the_update_of_the_whole_batch(update_with_kl):
    whole_state, whole_metrics = update_with_kl(1)
    state, metrics = update_with_kl(2)
    assert int(whole_metrics['targets'] * IMAGES) > 6, 'no pseudo-label was used'
    assert metrics.keys() == whole_metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(value, whole_metrics[name], rtol=2e-5, err_msg=name)
    # Adam's first step depends on little but gradient signs; its moments are linear in them.
    for new, old in zip(
        *map(jax.tree.leaves, (state.opt_state, whole_state.opt_state)), strict=True
    ):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(state.memory.written, whole_state.memory.written)
    np.testing.assert_allclose(state.memory.queries, whole_state.memory.queries, atol=1e-5)


def test_a_non_finite_step_changes_only_the_counters(update):
    boxes = np.full_like(update.batch.targets.boxes, np.nan)
    batch = update.batch.replace(targets=update.batch.targets.replace(boxes=boxes))
    state, metrics = update(batch=batch)
    assert np.isnan(metrics['total'])
    assert (state.step, state.skipped, metrics['skipped_steps']) == (1, 1, 1)
    good, _ = update()
    assert (good.step, good.skipped) == (1, 0)
    for part in ('params', 'opt_state', 'memory'):
        before, kept, changed = (
            jax.tree.leaves(getattr(s, part)) for s in (update.state, state, good)
        )
        assert any((a != b).any() for a, b in zip(before, changed, strict=True)), part
        for a, b in zip(before, kept, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=part)


@pytest.mark.slow
def test_the_query_bank_is_updated_in_place():
    changes = {
        'model.encoder_layers': 0,
        'model.decoder_layers': 0,
        'method.simcis.bank_size': 200_000,
    }
    large = Update(**changes)
    compiled = large.step(1).lower(*large.arguments()).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    assert temporaries < 0.5 * large.state.memory.queries.nbytes


def test_past_classes_select_the_queries_of_the_teacher(update):
    def positions(mask_unseen):
        step = Step(
            model=update.model, mask_unseen=mask_unseen, stage=update.stage, batch=update.batch
        )
        return teacher_predictions(step, update.teacher).selection.positions

    by_past, by_seen, by_all = (
        update.predict(update.teacher, selecting).selection.positions
        for selecting in (update.stage.past, update.stage.seen, np.ones(CLASSES, bool))
    )
    assert (by_past != by_seen).any() and (by_seen != by_all).any()
    np.testing.assert_array_equal(jax.jit(lambda: positions(True))(), by_past)
    np.testing.assert_array_equal(jax.jit(lambda: positions(False))(), by_all)


def test_seen_classes_select_the_queries_of_the_student(update):
    state, _ = update()
    new = (state.memory.queries != update.state.memory.queries).any(axis=-1)
    stored = state.memory.queries[new]
    assert len(stored) > IMAGES

    def distances(selecting):
        """Distance of each stored query to the nearest query that these classes select."""
        queries = update.predict(update.state.params, selecting).selection.queries.reshape(-1, 16)
        return jnp.abs(stored[:, None] - queries).max(axis=-1).min(axis=-1)

    assert distances(update.stage.seen).max() < 1e-5
    assert distances(update.stage.past).max() > 1e-2
    assert distances(np.ones(CLASSES, bool)).max() > 1e-2


def test_padding_rows_do_not_count_in_the_class_statistics(update):
    step = make_statistics_step(update.model, update.method, update.mesh)
    real = np.array([True, False, False, True])
    everything, some, others = (
        step(update.teacher, update.batch, rows, update.stage)
        for rows in (np.ones(IMAGES, bool), real, ~real)
    )
    assert some.sum() > 0 and others.sum() > 0
    np.testing.assert_array_equal(some + others, everything)


@pytest.mark.slow  # Compiles two steps.
def test_a_bfloat16_step_is_close_to_float32_and_keeps_state_and_predictions_in_float32(
    update_with_kl,
):
    low = Update(**{'model.dtype': 'bfloat16', 'method.simcis.decoder_kl_weight': 2.0})
    state, metrics = low()
    _, exact = update_with_kl()
    for name in ('class', 'mask', 'dice', 'box', 'giou', 'csl', 'decoder_kl', 'total'):
        np.testing.assert_allclose(metrics[name], exact[name], rtol=0.05, err_msg=name)
    assert all(np.isfinite(x) for x in metrics.values()) and metrics['total'] != exact['total']
    # Predictions too: selection, matching and losses are computed from them.
    predictions = jax.eval_shape(low.predict, low.teacher, low.stage.past)
    for part in (predictions, state.params, state.opt_state, state.memory, metrics):
        for x in jax.tree.leaves(part):
            assert x.dtype in (jnp.float32, jnp.int32), x


@pytest.mark.parametrize('microbatch_size, microbatches', [(0, 1), (4, 1), (2, 2), (1, 4)])
def test_the_images_of_a_device_are_divided_into_microbatches(microbatch_size, microbatches):
    assert accumulation.count_microbatches(8, 2, microbatch_size) == microbatches


@pytest.mark.parametrize('microbatch_size', [3, 5, -1])
def test_a_microbatch_size_that_does_not_divide_the_images_is_refused(microbatch_size):
    with pytest.raises(ValueError, match='microbatch_size=.* does not divide the 4 images'):
        accumulation.count_microbatches(8, 2, microbatch_size)
