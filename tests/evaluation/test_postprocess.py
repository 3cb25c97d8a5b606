import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.evaluation import postprocess, soft_sum

GOLDEN = Path(__file__).parent / 'golden'
NUM_CLASSES = 150
CASES = ('hand', 'none', 'tile')

panoptic_inference = jax.jit(postprocess.panoptic_inference)
semantic_inference = jax.jit(postprocess.semantic_inference)
instance_inference = jax.jit(postprocess.instance_inference, static_argnames='num_instances')
resized_masks = jax.jit(postprocess.resized_masks, static_argnames=('padded_size', 'output_shape'))
resized_labels = jax.jit(postprocess.resized_labels, static_argnames=('num_labels', 'output_shape'))


@pytest.fixture(scope='module')
def golden():
    with np.load(GOLDEN / 'post_handmade.npz') as arrays:
        return dict(arrays)


@pytest.fixture(scope='module')
def golden_resize():
    with np.load(GOLDEN / 'post_resize.npz') as arrays:
        return dict(arrays)


def is_thing(golden):
    return jnp.zeros(NUM_CLASSES, bool).at[golden['thing_ids']].set(True)


def only(label, num_classes=NUM_CLASSES):
    return jnp.arange(num_classes) == label


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def classify_by_loops(logits, seen, temperature):
    """(confidence, score, label) of every query."""
    classes = np.flatnonzero(seen)
    rows = []
    for row in np.asarray(logits, np.float64):
        probability = sigmoid(row[classes])
        weight = np.exp(probability / temperature)
        best = int(np.argmax(probability))
        rows.append((probability[best], weight[best] / weight.sum(), int(classes[best])))
    return rows


def segments_by_loops(class_logits, masks, kept, scores, survives):
    """{query: set of its pixels} of the kept queries that survive the overlap test."""
    won, own = {q: set() for q in kept}, {q: set() for q in kept}
    for y, x in np.ndindex(masks.shape[1:]):
        values = {q: scores[q] * sigmoid(np.float64(masks[q, y, x])) for q in kept}
        if values:
            won[max(values, key=values.get)].add((y, x))
        for q in kept:
            if masks[q, y, x] >= 0:
                own[q].add((y, x))
    return {
        q: won[q] & own[q] for q in kept if won[q] & own[q] and survives(len(won[q]), len(own[q]))
    }


def panoptic_by_loops(class_logits, masks, things, seen, rejected, threshold, overlap):
    rows = classify_by_loops(class_logits, seen, 0.06)
    kept = [q for q, (p, _, label) in enumerate(rows) if p > threshold and not rejected[label]]
    segments = segments_by_loops(
        class_logits, masks, kept, [row[1] for row in rows], lambda w, o: w / o >= overlap
    )
    segment_map, labels, stuff = np.zeros(masks.shape[1:], int), [], {}
    for q, pixels in segments.items():
        label = rows[q][2]
        if not things[label] and label in stuff:
            number = stuff[label]
        else:
            labels.append(label)
            number = len(labels)
            stuff.setdefault(label, number)
        for pixel in pixels:
            segment_map[pixel] = number
    return segment_map, labels


def random_scene(seed, num_queries=12, num_classes=7, shape=(14, 17)):
    """Slightly overlapping blobs, for which every rule of the post-processing matters."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape)
    masks = np.empty((num_queries, *shape), np.float32)
    for mask in masks:
        center, radius = rng.uniform((0, 0), shape), rng.uniform(1.5, 6)
        mask[:] = 2 * (radius - np.hypot(y - center[0], x - center[1]))
    masks += rng.normal(0, 0.3, masks.shape)
    class_logits = rng.normal(-1, 2, (num_queries, num_classes)).astype(np.float32)
    return class_logits, masks


@pytest.mark.parametrize('case', CASES)
def test_panoptic_inference_equals_the_published_code(golden, case):
    result = panoptic_inference(
        golden[f'{case}/logits'],
        golden[f'{case}/masks'],
        is_thing=is_thing(golden),
        object_mask_threshold=0.3,
    )
    segments = golden[f'pan_t1/{case}/panoptic_segments']
    np.testing.assert_array_equal(result.segment_map, golden[f'pan_t1/{case}/panoptic_seg'])
    np.testing.assert_array_equal(result.labels[: len(segments)], segments[:, 1])
    np.testing.assert_array_equal(result.labels[len(segments) :], -1)


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize(('setting', 'first_unseen'), [('pan_t1', 100), ('sem_t2', 110)])
def test_semantic_inference_equals_the_published_code(golden, case, setting, first_unseen):
    label_map = semantic_inference(
        golden[f'{case}/logits'], golden[f'{case}/masks'], rejected=only(first_unseen)
    )
    np.testing.assert_array_equal(label_map, golden[f'{setting}/{case}/sem_label'])


def test_rejecting_the_first_unseen_class_matters_in_the_golden_case(golden):
    label_maps = [
        semantic_inference(golden['hand/logits'], golden['hand/masks'], rejected=only(label))
        for label in (100, 110)
    ]
    assert np.any(label_maps[0] != label_maps[1])


@pytest.mark.parametrize('case', CASES)
def test_instance_inference_equals_the_published_code(golden, case):
    result = instance_inference(
        golden[f'{case}/logits'], golden[f'{case}/masks'], is_thing=is_thing(golden)
    )
    valid = np.asarray(result.labels) >= 0
    masks = golden[f'pan_t1/{case}/inst_masks_packed']
    # Several instances of the golden case tie, so they are compared as a set.
    mine = sorted(
        (int(label), mask.tobytes(), float(score))
        for label, mask, score in zip(
            result.labels[valid],
            np.packbits(np.asarray(result.masks)[valid], axis=-1),
            result.scores[valid],
            strict=True,
        )
    )
    theirs = sorted(
        (int(label), mask.tobytes(), float(score))
        for label, mask, score in zip(
            golden[f'pan_t1/{case}/inst_classes'],
            masks,
            golden[f'pan_t1/{case}/inst_scores'],
            strict=True,
        )
    )
    assert [row[:2] for row in mine] == [row[:2] for row in theirs]
    np.testing.assert_allclose(
        [row[2] for row in mine], [row[2] for row in theirs], rtol=1e-5, atol=1e-8
    )


def test_instance_inference_predicts_seen_classes_only():
    class_logits, masks = random_scene(0)
    seen = only(3, 7) | only(5, 7)
    result = instance_inference(
        class_logits, masks, is_thing=jnp.ones(7, bool), seen=seen, num_instances=50
    )
    assert set(np.unique(result.labels).tolist()) == {-1, 3, 5}
    assert (np.asarray(result.labels) >= 0).sum() == 24  # 12 queries, 2 classes.


@pytest.mark.parametrize('seed', range(8))
def test_panoptic_inference_equals_plain_loops(seed):
    class_logits, masks = random_scene(seed)
    things = np.arange(7) < 3
    seen, rejected = np.arange(7) != 2, np.arange(7) == 6
    result = panoptic_inference(
        class_logits,
        masks,
        is_thing=jnp.asarray(things),
        seen=jnp.asarray(seen),
        rejected=jnp.asarray(rejected),
        object_mask_threshold=0.3,
        overlap_threshold=0.6,
    )
    segment_map, labels = panoptic_by_loops(class_logits, masks, things, seen, rejected, 0.3, 0.6)
    np.testing.assert_array_equal(result.segment_map, segment_map)
    assert result.labels[: len(labels)].tolist() == labels
    assert (result.labels[len(labels) :] == -1).all()


@pytest.mark.parametrize('seed', range(4))
def test_semantic_inference_equals_plain_loops(seed):
    class_logits, masks = random_scene(seed)
    rows = classify_by_loops(class_logits, np.ones(7, bool), 0.06)
    kept = [q for q, row in enumerate(rows) if row[0] >= 0.4]
    segments = segments_by_loops(
        class_logits,
        masks,
        kept,
        [row[1] for row in rows],
        lambda won, own: min(won, own) / max(won, own) >= 0.6,
    )
    expected = np.full(masks.shape[1:], 7)
    for q, pixels in segments.items():
        for pixel in pixels:
            expected[pixel] = rows[q][2]
    label_map = semantic_inference(class_logits, masks, overlap_threshold=0.6)
    np.testing.assert_array_equal(label_map, expected)


def exact_share():
    """Class logits [2, 2] and masks [2, 1, 8]: query 1 wins exactly 4 of its 5 pixels."""
    rows = np.array([[[0, 0, 0, 0, 1, 1, 1, 1]], [[1, 1, 1, 1, 1, 0, 0, 0]]])
    return jnp.array([[3.0, -9.0], [-9.0, 2.0]]), jnp.asarray(rows * 20.0 - 10.0)


@pytest.mark.parametrize(('overlap_threshold', 'kept'), [(0.8, True), (0.8001, False)])
def test_a_query_that_keeps_exactly_its_share_of_pixels_is_kept(overlap_threshold, kept):
    settings = dict(object_mask_threshold=0.4, overlap_threshold=overlap_threshold)
    result = panoptic_inference(*exact_share(), is_thing=jnp.ones(2, bool), **settings)
    np.testing.assert_array_equal(result.labels, [0, 1 if kept else -1])
    np.testing.assert_array_equal(result.segment_map, [[2 * kept] * 4 + [1] * 4])
    label_map = semantic_inference(*exact_share(), **settings)
    np.testing.assert_array_equal(label_map, [[1 if kept else 2] * 4 + [0] * 4])


def test_a_query_of_exactly_the_threshold_is_kept_in_semantic_inference_only():
    masks = jnp.full((1, 1, 2), 10.0)
    class_logits = jnp.array([[0.0, -9.0]])  # A probability of one half.
    result = panoptic_inference(
        class_logits, masks, is_thing=jnp.ones(2, bool), object_mask_threshold=0.5
    )
    np.testing.assert_array_equal(result.labels, [-1])
    label_map = semantic_inference(class_logits, masks, object_mask_threshold=0.5)
    np.testing.assert_array_equal(label_map, [[0, 0]])


def test_a_single_seen_class_has_class_score_one():
    class_logits, masks = random_scene(1)
    result = panoptic_inference(
        class_logits,
        masks,
        is_thing=jnp.ones(7, bool),
        seen=only(4, 7),
        object_mask_threshold=0.0,
        overlap_threshold=0.1,
    )
    present = np.asarray(result.labels) >= 0
    assert present.any()
    np.testing.assert_array_equal(np.asarray(result.labels)[present], 4)
    np.testing.assert_allclose(np.asarray(result.scores), present, rtol=1e-6)


def test_the_object_mask_threshold_is_strict_and_the_semantic_one_is_not():
    class_logits, masks = jnp.zeros((1, 2)), jnp.ones((1, 3, 3))
    panoptic = panoptic_inference(
        class_logits, masks, is_thing=jnp.ones(2, bool), object_mask_threshold=0.5
    )
    semantic = semantic_inference(class_logits, masks, object_mask_threshold=0.5)
    assert not panoptic.segment_map.any()
    assert (semantic == 0).all()


def test_pixels_outside_the_image_change_nothing():
    class_logits, masks = random_scene(2)
    settings = dict(is_thing=jnp.arange(7) < 3, object_mask_threshold=0.3, overlap_threshold=0.6)
    plain = panoptic_inference(class_logits, masks, **settings)
    padded_masks = np.pad(masks, ((0, 0), (0, 9), (0, 5)), constant_values=-np.inf)
    padded = panoptic_inference(class_logits, padded_masks, **settings)
    height, width = masks.shape[1:]
    np.testing.assert_array_equal(padded.segment_map[:height, :width], plain.segment_map)
    np.testing.assert_array_equal(padded.labels, plain.labels)
    assert np.asarray(padded.segment_map).sum() == np.asarray(plain.segment_map).sum()
    semantic = semantic_inference(class_logits, padded_masks)
    assert (np.asarray(semantic)[height:] == 7).all()


def test_panoptic_inference_maps_over_a_batch():
    scenes = [random_scene(seed) for seed in range(3)]
    things = jnp.arange(7) < 3

    def infer(class_logits, masks):
        return panoptic_inference(class_logits, masks, is_thing=things, object_mask_threshold=0.3)

    batched = jax.vmap(infer)(*(np.stack(arrays) for arrays in zip(*scenes, strict=True)))
    for index, scene in enumerate(scenes):
        single = infer(*scene)
        np.testing.assert_array_equal(batched.segment_map[index], single.segment_map)
        np.testing.assert_array_equal(batched.labels[index], single.labels)


def resized_by_loops(plane, shape):
    """One bilinear resize [h, w] -> shape, pixel centres at (i + 0.5) / size, edges repeated."""

    def taps(num_out, num_in):
        for i in range(num_out):
            source = min(max((i + 0.5) * num_in / num_out - 0.5, 0), num_in - 1)
            low = int(source)
            yield low, min(low + 1, num_in - 1), source - low

    out = np.zeros(shape)
    for y, (y0, y1, fy) in enumerate(taps(shape[0], plane.shape[0])):
        for x, (x0, x1, fx) in enumerate(taps(shape[1], plane.shape[1])):
            top = plane[y0, x0] * (1 - fx) + plane[y0, x1] * fx
            bottom = plane[y1, x0] * (1 - fx) + plane[y1, x1] * fx
            out[y, x] = top * (1 - fy) + bottom * fy
    return out


@pytest.mark.parametrize(
    ('size', 'original'), [((31, 23), (17, 29)), ((32, 32), (32, 32)), ((19, 32), (40, 37))]
)
def test_resized_masks_equals_three_separate_steps(size, original):
    mask_logits = np.random.default_rng(0).normal(0, 5, (2, 8, 8)).astype(np.float32)
    result = np.asarray(
        resized_masks(
            mask_logits,
            padded_size=(32, 32),
            size=jnp.array(size),
            original_size=jnp.array(original),
            output_shape=(40, 40),
        )
    )
    height, width = original
    for mask, expected in zip(result, mask_logits, strict=True):
        expected = resized_by_loops(expected, (32, 32))[: size[0], : size[1]]
        expected = resized_by_loops(expected, original)
        np.testing.assert_allclose(mask[:height, :width], expected, rtol=1e-5, atol=1e-4)
        assert np.isneginf(mask[height:]).all()
        assert np.isneginf(mask[:, width:]).all()


def test_resized_masks_equals_the_published_code(golden_resize):
    padded, size, original = golden_resize['mask_sizes']
    result = resized_masks(
        golden_resize['mask_logits'],
        padded_size=tuple(padded.tolist()),
        size=jnp.asarray(size),
        original_size=jnp.asarray(original),
        output_shape=tuple(original.tolist()),
    )
    np.testing.assert_allclose(
        result[:, ::2, ::8], golden_resize['masks_resized'], rtol=1e-5, atol=1e-4
    )


def test_resized_labels_equals_the_published_code(golden_resize):
    _, size, original = golden_resize['label_sizes']
    result = resized_labels(
        jnp.asarray(golden_resize['label_padded'], jnp.int32),
        num_labels=NUM_CLASSES + 1,
        size=jnp.asarray(size),
        original_size=jnp.asarray(original),
        output_shape=(80, 160),
    )
    height, width = original
    np.testing.assert_array_equal(result[:height, :width], golden_resize['label_resized'])
    assert (result[height:] == NUM_CLASSES).all()
    assert (result[:, width:] == NUM_CLASSES).all()


def test_resizing_labels_takes_memory_for_a_few_of_them():
    compiled = resized_labels.lower(
        jnp.zeros((256, 256), jnp.int32),
        num_labels=151,
        size=jnp.array([256, 256]),
        original_size=jnp.array([512, 512]),
        output_shape=(512, 512),
    ).compile()
    one_map = 512 * 512 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 40 * one_map


def test_bfloat16_masks_are_accepted():
    class_logits, masks = random_scene(3)
    coarse = jnp.asarray(masks, jnp.bfloat16)
    settings = dict(is_thing=jnp.arange(7) < 3, object_mask_threshold=0.3)
    result = panoptic_inference(class_logits, coarse, **settings)
    exact = panoptic_inference(class_logits, coarse.astype(jnp.float32), **settings)
    np.testing.assert_array_equal(result.segment_map, exact.segment_map)


def test_one_compilation_serves_all_image_sizes():
    class_logits, masks = random_scene(4)
    traces = []

    @jax.jit
    def infer(size, original_size):
        traces.append(1)
        resized = resized_masks(
            masks,
            padded_size=(28, 34),
            size=size,
            original_size=original_size,
            output_shape=(40, 48),
        )
        return panoptic_inference(
            class_logits, resized, is_thing=jnp.arange(7) < 3, object_mask_threshold=0.3
        )

    for size, original_size in [((28, 34), (40, 48)), ((21, 30), (33, 47))]:
        result = infer(jnp.array(size), jnp.array(original_size))
        exact = panoptic_inference(
            class_logits,
            resized_masks(
                masks,
                padded_size=(28, 34),
                size=jnp.array(size),
                original_size=jnp.array(original_size),
                output_shape=original_size,
            ),
            is_thing=jnp.arange(7) < 3,
            object_mask_threshold=0.3,
        )
        height, width = original_size
        np.testing.assert_array_equal(result.segment_map[:height, :width], exact.segment_map)
        np.testing.assert_array_equal(result.labels, exact.labels)
    assert len(traces) == 1


# The original Mask2Former: the softmax head with "no object".


def softmax(logits):
    e = np.exp(np.float64(logits) - np.max(logits))
    return e / e.sum()


def plain_panoptic_by_loops(class_logits, masks, things, threshold, overlap):
    """Queries of "no object" or below the threshold do not compete; score = probability."""
    probabilities = [softmax(row) for row in class_logits]
    no_object = class_logits.shape[1] - 1
    kept = [
        q for q, p in enumerate(probabilities) if np.argmax(p) != no_object and p.max() > threshold
    ]
    scores = [p.max() for p in probabilities]
    segments = segments_by_loops(
        class_logits, masks, kept, scores, lambda won, own: won / own >= overlap
    )
    segment_map, labels, stuff = np.zeros(masks.shape[1:], int), [], {}
    for q, pixels in segments.items():
        label = int(np.argmax(probabilities[q]))
        if things[label] or label not in stuff:
            labels.append(label)
            stuff[label] = len(labels)
        for pixel in pixels:
            segment_map[pixel] = len(labels) if things[label] else stuff[label]
    return segment_map, labels


@pytest.mark.parametrize('seed', range(6))
def test_panoptic_inference_of_the_softmax_head_equals_loops(seed):
    class_logits, masks = random_scene(seed, num_classes=6)
    class_logits[:, 5] += 1
    things = np.array([True, False, True, False, False])
    infer = jax.jit(functools.partial(postprocess.panoptic_inference, head='softmax'))
    result = infer(
        class_logits, masks, is_thing=things, object_mask_threshold=0.4, overlap_threshold=0.6
    )
    segment_map, labels = plain_panoptic_by_loops(class_logits, masks, things, 0.4, 0.6)
    np.testing.assert_array_equal(result.segment_map, segment_map)
    np.testing.assert_array_equal(result.labels[: len(labels)], labels)
    np.testing.assert_array_equal(result.labels[len(labels) :], -1)
    assert labels


def test_only_seen_classes_share_the_probability_of_the_softmax_head():
    class_logits, masks = random_scene(1, num_classes=4)
    class_logits[0] = [5, 1, 0, -1]
    seen = jnp.array([False, True, True])
    settings = dict(is_thing=jnp.ones(3, bool), seen=seen, object_mask_threshold=0.4)
    result = postprocess.panoptic_inference(class_logits, masks, **settings, head='softmax')
    assert not np.any(np.asarray(result.labels) == 0)
    scores = soft_sum.class_scores(class_logits, masks, seen=seen)
    assert not np.any(scores[0]) and np.all(scores[1] > 0)
    expected = softmax(class_logits[0, 1:])
    from_one = soft_sum.class_scores(class_logits[:1], masks[:1], seen=seen)
    np.testing.assert_allclose(
        from_one[1:], expected[:2, None, None] * sigmoid(masks[:1]), rtol=1e-5
    )


def test_scores_are_resized_before_the_strongest_class_is_chosen():
    scores = np.zeros((2, 4, 6), np.float32)
    scores[0], scores[1, :, 3:] = 0.5, 1.0
    resized = soft_sum.resized_scores(
        scores, size=jnp.array([2, 4]), original_size=jnp.array([4, 8]), output_shape=(4, 8)
    )
    # The last of four columns holds class 1; between the centres of two columns, scores blend.
    np.testing.assert_allclose(resized[1, 0], [0, 0, 0, 0, 0, 0.25, 0.75, 1.0])
    labels = soft_sum.strongest_class(resized)
    np.testing.assert_array_equal(labels, np.tile([0, 0, 0, 0, 0, 0, 1, 1], (4, 1)))
