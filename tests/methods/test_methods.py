"""What the hooks of every method change, and what they leave unchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.continual import virtual_query
from simcis_jax.losses.segmentation import Matches
from simcis_jax.methods import METHODS, base, make_method
from simcis_jax.methods.balconpas import BalConpas
from simcis_jax.methods.base import Method
from simcis_jax.methods.comformer import CoMFormer
from simcis_jax.methods.eclipse import ECLIPSE
from simcis_jax.methods.futcr import FuTCR
from simcis_jax.methods.mib import MiB
from simcis_jax.methods.plop import PLOP
from simcis_jax.methods.pseudo_label import PseudoLabel
from simcis_jax.methods.simcis import SimCIS
from simcis_jax.methods.step import Step
from simcis_jax.model.class_logits import UNSEEN
from simcis_jax.types import Batch, Predictions, Selection, StageArrays, Targets, TrainState

SETS, IMAGES, QUERIES, CLASSES, WIDTH, SLOTS = 2, 2, 4, 5, 3, 3


def predictions(seed=0):
    keys = jax.random.split(jax.random.key(seed), 5)
    return Predictions(
        class_logits=jax.random.normal(keys[0], (SETS, IMAGES, QUERIES, CLASSES)) * 2,
        mask_embeddings=jax.random.normal(keys[1], (SETS, IMAGES, QUERIES, WIDTH)) * 3,
        boxes=jnp.zeros((SETS, IMAGES, QUERIES, 4)),
        virtual_class_logits=jnp.zeros((SETS, IMAGES, 0, CLASSES)),
        mask_features=jax.random.normal(keys[2], (IMAGES, 4, 4, WIDTH)),
        selection=Selection(
            token_logits=jax.random.normal(keys[3], (IMAGES, QUERIES, CLASSES)) * 2,
            positions=jnp.array([[8, 0, 3, 5], [1, 2, 7, 4]]),
            queries=jax.random.normal(keys[4], (IMAGES, QUERIES, WIDTH)),
        ),
    )


def targets(labels):
    return Targets(
        segment_map=jnp.zeros((IMAGES, 16, 16), jnp.uint8),
        labels=jnp.array(labels),
        boxes=jnp.zeros((IMAGES, SLOTS, 4)),
        dropped=jnp.zeros(IMAGES, jnp.int32),
    )


NO_TARGETS = targets([[-1] * SLOTS] * IMAGES)
STAGE = StageArrays(
    past=jnp.array([True, True, True, False, False]),
    current=jnp.array([False, False, False, True, False]),
    num_steps=jnp.array(10),
    learning_rate=jnp.array(1e-4),
)


KEY = jax.random.key(0)


def step_of(student=None, teacher=None, truth=NO_TARGETS, **fields):
    """A step as hooks get it; the targets are the ground truth unless given."""
    batch = Batch(image=jnp.zeros((IMAGES, 16, 16, 3), jnp.uint8), targets=truth)
    fields = {'targets': truth, 'key': KEY, 'rows': jnp.arange(IMAGES)} | fields
    return Step(stage=STAGE, batch=batch, student=student, teacher=teacher, **fields)


def state_of(memory):
    dense = {'kernel': jnp.ones((WIDTH, CLASSES + 1)), 'bias': jnp.ones(CLASSES + 1)}
    params = {'heads': {'class_head': {'dense': dense}}}
    return TrainState(jnp.int32(0), params, None, memory, KEY, jnp.int32(0))


BASIC = {name: jnp.ones(SETS) for name in ('class', 'mask', 'dice', 'box', 'giou')}


@pytest.fixture(autouse=True)
def basic_terms(monkeypatch):
    """The basic terms have their own tests, and take long without compilation."""
    monkeypatch.setattr(base, 'segmentation_losses', lambda *_, **__: BASIC)


def added(method, step):
    """The loss terms that the method adds to the basic ones, weighted."""
    terms = method.losses(step)
    assert terms.keys() >= BASIC.keys()
    return {name: t.weight * t.sum for name, t in terms.items() if name not in BASIC}


def test_every_method_is_found_by_its_name():
    made = {name: type(make_method(name)) for name in METHODS}
    assert made == {
        'finetune': Method, 'pseudo_label': PseudoLabel, 'simcis': SimCIS, 'futcr': FuTCR,
        'mib': MiB, 'plop': PLOP, 'comformer': CoMFormer, 'balconpas': BalConpas,
        'eclipse': ECLIPSE,
    }  # fmt: skip


def test_an_unknown_method_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="method.name='mine' is unknown.*finetune.*simcis"):
        make_method('mine')


def test_settings_reach_the_method():
    method = make_method('simcis', csl_weight=7.0, pseudo_label_score=0.5)
    assert method.csl_weight == 7.0 and method.rule.score_threshold == 0.5


def test_a_bank_is_not_replayed_without_virtual_queries():
    bank = virtual_query.create(CLASSES, 3, WIDTH).replace(written=jnp.array([5, 1, 0, 0, 0]))
    assert SimCIS().replayed(bank) == {'queries': 4, 'query_bytes': 4 * WIDTH * 4 + 8 * CLASSES}
    assert SimCIS(num_virtual_queries=0).replayed(bank) == Method().replayed(()) == {}


def test_defaults_equal_the_published_settings_of_100_10():
    method = SimCIS()
    assert (method.csl_weight, method.csl_temperature, method.decoder_kl_weight) == (2.0, 1.0, 0.0)
    assert (method.num_virtual_queries, method.bank_size, method.sampling_alpha) == (1, 80, 0.5)
    rule = method.rule
    assert (rule.score_threshold, rule.overlap_threshold) == (0.35, 0.8)
    assert (rule.temperature, rule.merge_classes) == (0.06, False)


def test_merging_classes_ranks_by_probability():
    rule = PseudoLabel(merge_classes=True, pseudo_label_score=0.0).rule
    assert rule.merge_classes and rule.temperature is None and rule.score_threshold == 0.0


def test_fine_tuning_changes_nothing():
    method, memory = Method(), object()
    step, state = step_of(predictions(), predictions(1)), state_of(memory)
    assert not method.uses_teacher and not method.uses_statistics
    assert method.init_memory(CLASSES, WIDTH) == method.statistics(step) == method.store(step) == ()
    assert method.begin_stage(state, STAGE, None) is method.end_stage(state, STAGE) is state
    assert method.virtual_queries(step) is None
    assert method.targets(step) is step.batch.targets
    assert method.update_memory(memory, (), jnp.array(True)) is memory
    assert method.class_logits(step.student, None) is not None
    np.testing.assert_array_equal(
        method.class_logits(step.student, None), step.student.class_logits[-1]
    )
    assert added(method, step) == {} and method.trainable('any/path', None)


@pytest.mark.parametrize('name', METHODS)
def test_the_first_stage_has_ground_truth_and_initial_parameters(name):
    method, step = make_method(name), step_of(predictions())
    assert method.targets(step) is step.batch.targets
    assert method.virtual_queries(step) is None

    state = state_of(method.init_memory(CLASSES, WIDTH))
    first = STAGE.replace(past=jnp.zeros_like(STAGE.past))
    begun = method.begin_stage(state, first, None)
    assert begun.key is state.key and begun.memory is state.memory
    jax.tree.map(np.testing.assert_array_equal, begun.params, state.params)


def test_the_basic_terms_are_weighted_and_divided_by_the_number_of_targets():
    method, step = Method(), step_of(predictions())
    terms = method.losses(step)
    weights = {name: (term.weight, term.per) for name, term in terms.items()}
    assert weights == {
        'class': (4.0, 'target'), 'mask': (5.0, 'target'), 'dice': (5.0, 'target'),
        'box': (5.0, 'target'), 'giou': (2.0, 'target'),
    }  # fmt: skip
    truth = targets([[4, 1, -1], [4, -1, -1]])
    assert method.totals(step_of(truth=truth)) == {'image': IMAGES, 'target': 3}


def test_pseudo_labelling_only_adds_targets():
    method, step = PseudoLabel(), step_of(predictions(), predictions())
    assert method.uses_teacher and not method.uses_statistics
    assert method.virtual_queries(step) is None
    assert added(method, step) == {}


@pytest.mark.parametrize('method', [PseudoLabel(), SimCIS()])
def test_pseudo_labels_are_past_classes(method):
    teacher = predictions()
    logits = jnp.full((SETS, IMAGES, QUERIES, CLASSES), -9.0)
    # Each query has its own mask; the best classes of queries 2 and 3 are not past.
    best = jnp.array([0, 2, 3, 4])
    logits = logits.at[:, :, jnp.arange(QUERIES), best].set(4.0)
    columns = jax.nn.one_hot(jnp.arange(4), 4) * 40 - 20
    teacher = teacher.replace(
        class_logits=logits,
        mask_embeddings=jnp.broadcast_to(jnp.eye(4), (SETS, IMAGES, 4, 4)),
        mask_features=jnp.broadcast_to(columns[None, None], (IMAGES, 4, 4, 4)),
    )
    merged = method.targets(step_of(teacher=teacher))
    np.testing.assert_array_equal(np.sort(merged.labels, axis=1), [[-1, 0, 2]] * IMAGES)


@pytest.mark.parametrize('method', [PseudoLabel, SimCIS])
def test_the_class_term_ignores_what_is_in_doubt(method, monkeypatch):
    student, teacher = predictions(0), predictions(1)
    queries = jnp.zeros((SETS, IMAGES, SLOTS), jnp.int32)
    fields = dict(truth=targets([[0, -1, -1], [3, -1, -1]]), matches=Matches(queries, jnp.int32(0)))
    step, used = step_of(student, teacher, **fields), []

    def class_logits(score):
        monkeypatch.setattr(
            base, 'segmentation_losses', lambda student, *_, **__: used.append(student) or BASIC
        )
        method(doubt_score=score).losses(step)
        return np.asarray(used[-1].class_logits)

    np.testing.assert_array_equal(class_logits(1.0), student.class_logits)
    ignored = class_logits(0.0) == UNSEEN  # All past classes without a target are in doubt.
    expected = np.zeros(ignored.shape, bool)
    expected[:, 0, 1:, 1:3] = expected[:, 1, 1:, 0:3] = True  # Query 0 is matched.
    np.testing.assert_array_equal(ignored, expected)


def test_csl_is_weighted_and_can_be_switched_off():
    step = step_of(predictions(0), predictions(1))
    once = added(SimCIS(csl_weight=1.0), step)
    thrice = added(SimCIS(csl_weight=3.0), step)
    assert once.keys() == {'csl'} and once['csl'] > 0
    np.testing.assert_allclose(thrice['csl'], 3 * once['csl'], rtol=1e-6)
    assert added(SimCIS(csl_weight=0.0), step) == {}


def test_csl_compares_the_students_tokens_with_the_teachers_initial_queries():
    student, teacher = predictions(0), predictions(1)
    logits = teacher.class_logits.at[0].set(student.selection.token_logits)
    agreeing = teacher.replace(class_logits=logits)
    np.testing.assert_allclose(added(SimCIS(), step_of(student, agreeing))['csl'], 0, atol=1e-5)


def test_decoder_kl_compares_final_logits_and_passes_no_gradient_to_the_teacher():
    method = SimCIS(csl_weight=0.0, decoder_kl_weight=2.0, decoder_kl_temperature=3.0)
    student, teacher = predictions(0), predictions(1)

    def loss(replayed_logits, teacher_logits):
        terms = added(
            method,
            step_of(
                student.replace(replayed_class_logits=replayed_logits),
                jax.lax.stop_gradient(teacher.replace(class_logits=teacher_logits)),
            ),
        )
        assert terms.keys() == {'decoder_kl'}
        return terms['decoder_kl']

    logits = student.class_logits, teacher.class_logits
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(*logits)
    p, q = (np.exp(np.asarray(x[-1], np.float64) / 3) for x in logits[::-1])
    p, q = (x / x.sum(axis=-1, keepdims=True) for x in (p, q))
    np.testing.assert_allclose(value, 2 * (p * np.log(p / q)).sum(), rtol=1e-4)
    assert gradients[0][-1].any() and not gradients[0][0].any() and not gradients[1].any()


def test_statistics_count_the_targets_of_past_classes():
    labels = targets([[0, 0, 3], [2, 0, -1]])
    np.testing.assert_array_equal(SimCIS().statistics(step_of(targets=labels)), [3, 0, 1, 0, 0])


def test_a_stage_keeps_the_queries_and_gets_its_own_counts():
    method = SimCIS(bank_size=2)
    memory = method.update_memory(
        method.init_memory(CLASSES, WIDTH), (jnp.ones((1, 1, WIDTH)), jnp.array([[1]])), True
    )
    memory = memory.replace(counts=jnp.full(CLASSES, 9.0))
    begun = method.begin_stage(state_of(memory), STAGE, jnp.arange(5.0)).memory
    np.testing.assert_array_equal(begun.counts, np.arange(5))
    np.testing.assert_array_equal(begun.queries, memory.queries)
    np.testing.assert_array_equal(begun.written, memory.written)


def test_statistics_are_needed_only_with_virtual_queries():
    assert SimCIS().uses_statistics and not SimCIS(num_virtual_queries=0).uses_statistics


def test_virtual_queries_are_stored_queries_of_past_classes():
    method = SimCIS(num_virtual_queries=3, bank_size=2)
    memory = method.init_memory(CLASSES, WIDTH)
    step = step_of(teacher=predictions(), memory=memory)
    virtual = method.virtual_queries(step)
    assert virtual.queries.shape == (IMAGES, 3, WIDTH) and (virtual.labels == -1).all()
    queries = jnp.broadcast_to(jnp.arange(5.0)[None, :, None], (1, 5, WIDTH))
    memory = method.update_memory(memory, (queries, jnp.array([[0, 1, 2, 3, 4]])), True)
    virtual = method.virtual_queries(step.replace(memory=memory))
    np.testing.assert_array_equal(virtual.queries[..., 0], virtual.labels)
    assert virtual.labels.min() >= 0 and virtual.labels.max() <= 2
    assert (virtual.labels[0] != virtual.labels[1]).any()  # Each image has its own sample.


def test_exactly_the_matched_queries_are_stored():
    method = SimCIS(bank_size=2)
    student = predictions()
    # The last decoder output counts; slot 2 of image 0 and slots 1, 2 of image 1 are padding.
    matches = Matches(
        jnp.array([[[3, 2, 1], [3, 2, 1]], [[2, 0, 1], [3, 1, 2]]]), jnp.zeros((), jnp.int32)
    )
    truth = targets([[4, 1, -1], [4, -1, -1]])
    queries, labels = method.store(step_of(student, truth=truth, matches=matches))
    np.testing.assert_array_equal(labels, [[1, -1, 4, -1], [-1, -1, -1, 4]])
    memory = method.update_memory(method.init_memory(CLASSES, WIDTH), (queries, labels), True)
    features = student.selection.queries
    np.testing.assert_array_equal(memory.written, [0, 1, 0, 0, 2])
    np.testing.assert_array_equal(memory.queries[1, 0], features[0, 0])
    np.testing.assert_array_equal(memory.queries[4], [features[0, 2], features[1, 3]])
    assert not memory.queries.at[1, 0].set(0).at[4].set(0).any()


def test_the_bank_does_not_depend_on_how_images_are_grouped():
    method = SimCIS(bank_size=2)
    queries = jax.random.normal(jax.random.key(0), (4, QUERIES, WIDTH))
    labels = jax.random.randint(jax.random.key(1), (4, QUERIES), -1, CLASSES)
    together = method.update_memory(method.init_memory(CLASSES, WIDTH), (queries, labels), True)
    apart = virtual_query.create(CLASSES, 2, WIDTH)
    for image in range(4):
        apart = method.update_memory(apart, (queries[image][None], labels[image][None]), True)
    jax.tree.map(np.testing.assert_array_equal, together, apart)


@pytest.mark.parametrize('name', METHODS)
def test_a_step_that_is_not_finite_keeps_the_memory(name):
    method, student = make_method(name), predictions()
    matches = Matches(jnp.array([[[3, 2, 1], [2, 0, 1]]] * SETS), jnp.zeros((), jnp.int32))
    step = step_of(student, truth=targets([[4, 1, -1], [4, -1, -1]]), matches=matches)
    stored = method.store(step)
    memory = method.update_memory(method.init_memory(CLASSES, WIDTH), stored, jnp.array(True))
    nans = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan) if x.dtype == float else x, stored)
    kept = method.update_memory(memory, nans, jnp.array(False))
    jax.tree.map(np.testing.assert_array_equal, kept, memory)
