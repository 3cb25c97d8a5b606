"""What the hooks of every method change, and what they leave unchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.continual import virtual_query
from simcis_jax.losses.segmentation import Matches
from simcis_jax.methods import METHODS, make_method
from simcis_jax.methods.base import Method
from simcis_jax.methods.pseudo_label import PseudoLabel
from simcis_jax.methods.simcis import SimCIS
from simcis_jax.model.masked_decoder import DecoderOutputs
from simcis_jax.types import Predictions, Selection, StageArrays, Targets

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


def test_every_method_is_found_by_its_name():
    made = {name: type(make_method(name)) for name in METHODS}
    assert made == {'finetune': Method, 'pseudo_label': PseudoLabel, 'simcis': SimCIS}


def test_an_unknown_method_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="method.name='plop' is unknown.*finetune.*simcis"):
        make_method('plop')


def test_settings_reach_the_method_and_those_of_others_are_ignored():
    settings = dict(csl_weight=7.0, pseudo_label_score=0.5)
    method = make_method('simcis', **settings)
    assert method.csl_weight == 7.0 and method.rule.score_threshold == 0.5
    assert make_method('pseudo_label', **settings) == PseudoLabel(pseudo_label_score=0.5)
    assert make_method('finetune', **settings) == Method()


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
    method, memory, truth = Method(), object(), NO_TARGETS
    student = teacher = predictions()
    assert (
        not method.uses_teacher
        and not method.uses_statistics
        and not method.replays_teacher_queries
    )
    assert method.init_memory(CLASSES, WIDTH) == ()
    assert method.statistics(truth, STAGE) == ()
    assert method.begin_stage(memory, ()) is memory
    assert method.virtual_queries(memory, STAGE, jax.random.split(jax.random.key(0))) is None
    assert method.targets(truth, teacher, STAGE) is truth
    assert method.losses(student, None, teacher) == {}
    assert method.stored_queries(student, truth, None) is None
    assert method.update_memory(memory, jnp.zeros((1, 1, 3)), jnp.zeros((1, 1))) is memory


def test_pseudo_labelling_only_adds_targets():
    method = PseudoLabel()
    assert method.uses_teacher and not method.uses_statistics
    assert method.virtual_queries((), STAGE, jax.random.split(jax.random.key(0))) is None
    assert method.losses(predictions(), None, predictions()) == {}


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
    merged = method.targets(NO_TARGETS, teacher, STAGE)
    np.testing.assert_array_equal(np.sort(merged.labels, axis=1), [[-1, 0, 2]] * IMAGES)


def test_csl_is_weighted_and_can_be_switched_off():
    student, teacher = predictions(0), predictions(1)
    once = SimCIS(csl_weight=1.0).losses(student, None, teacher)
    thrice = SimCIS(csl_weight=3.0).losses(student, None, teacher)
    assert once.keys() == {'csl'} and once['csl'] > 0
    np.testing.assert_allclose(thrice['csl'], 3 * once['csl'], rtol=1e-6)
    assert SimCIS(csl_weight=0.0).losses(student, None, teacher) == {}


def test_csl_compares_the_students_tokens_with_the_teachers_initial_queries():
    student, teacher = predictions(0), predictions(1)
    logits = teacher.class_logits.at[0].set(student.selection.token_logits)
    agreeing = teacher.replace(class_logits=logits)
    np.testing.assert_allclose(SimCIS().losses(student, None, agreeing)['csl'], 0, atol=1e-5)


def test_decoder_kl_compares_final_logits_and_passes_no_gradient_to_the_teacher():
    method = SimCIS(csl_weight=0.0, decoder_kl_weight=2.0, decoder_kl_temperature=3.0)
    assert method.replays_teacher_queries and not SimCIS().replays_teacher_queries
    student, teacher = predictions(0), predictions(1)

    def loss(replayed_logits, teacher_logits):
        sets = DecoderOutputs(replayed_logits, None, None)
        terms = method.losses(student, sets, teacher.replace(class_logits=teacher_logits))
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
    np.testing.assert_array_equal(SimCIS().statistics(labels, STAGE), [3, 0, 1, 0, 0])


def test_a_stage_keeps_the_queries_and_gets_its_own_counts():
    method = SimCIS(bank_size=2)
    memory = method.update_memory(
        method.init_memory(CLASSES, WIDTH), jnp.ones((1, 1, WIDTH)), jnp.array([[1]])
    )
    memory = memory.replace(counts=jnp.full(CLASSES, 9.0))
    begun = method.begin_stage(memory, jnp.arange(5.0))
    np.testing.assert_array_equal(begun.counts, np.arange(5))
    np.testing.assert_array_equal(begun.queries, memory.queries)
    np.testing.assert_array_equal(begun.written, memory.written)


def test_statistics_are_needed_only_with_virtual_queries():
    assert SimCIS().uses_statistics and not SimCIS(num_virtual_queries=0).uses_statistics


def test_virtual_queries_are_stored_queries_of_past_classes():
    method = SimCIS(num_virtual_queries=3, bank_size=2)
    memory = method.init_memory(CLASSES, WIDTH)
    keys = jax.random.split(jax.random.key(0), IMAGES)
    virtual = method.virtual_queries(memory, STAGE, keys)
    assert virtual.queries.shape == (IMAGES, 3, WIDTH) and (virtual.labels == -1).all()
    queries = jnp.broadcast_to(jnp.arange(5.0)[None, :, None], (1, 5, WIDTH))
    memory = method.update_memory(memory, queries, jnp.array([[0, 1, 2, 3, 4]]))
    virtual = method.virtual_queries(memory, STAGE, keys)
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
    queries, labels = method.stored_queries(student, truth, matches)
    np.testing.assert_array_equal(labels, [[1, -1, 4, -1], [-1, -1, -1, 4]])
    memory = method.update_memory(method.init_memory(CLASSES, WIDTH), queries, labels)
    features = student.selection.queries
    np.testing.assert_array_equal(memory.written, [0, 1, 0, 0, 2])
    np.testing.assert_array_equal(memory.queries[1, 0], features[0, 0])
    np.testing.assert_array_equal(memory.queries[4], [features[0, 2], features[1, 3]])
    assert not memory.queries.at[1, 0].set(0).at[4].set(0).any()


def test_the_bank_does_not_depend_on_how_images_are_grouped():
    method = SimCIS(bank_size=2)
    queries = jax.random.normal(jax.random.key(0), (4, QUERIES, WIDTH))
    labels = jax.random.randint(jax.random.key(1), (4, QUERIES), -1, CLASSES)
    together = method.update_memory(method.init_memory(CLASSES, WIDTH), queries, labels)
    apart = virtual_query.create(CLASSES, 2, WIDTH)
    for image in range(4):
        apart = method.update_memory(apart, queries[image][None], labels[image][None])
    jax.tree.map(np.testing.assert_array_equal, together, apart)


@pytest.mark.parametrize('name', METHODS)
def test_a_step_that_stores_no_query_keeps_the_memory(name):
    method = make_method(name)
    keys = jax.random.split(jax.random.key(0))
    memory = method.init_memory(CLASSES, WIDTH)
    queries = jax.random.normal(keys[0], (IMAGES, QUERIES, WIDTH))
    labels = jax.random.randint(keys[1], (IMAGES, QUERIES), 0, CLASSES)
    memory = method.update_memory(memory, queries, labels)
    kept = method.update_memory(memory, jnp.full_like(queries, jnp.nan), jnp.full_like(labels, -1))
    jax.tree.map(np.testing.assert_array_equal, kept, memory)
