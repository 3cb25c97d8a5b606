"""Drift and clusters: against plain loops, and on the checkpoints of a finished run."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import clusters, drift, features
from simcis_jax.data.source import Example


def test_cosine_similarity_is_the_mean_over_vectors():
    a, b = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    values = []
    for i, j in itertools.product(range(3), range(4)):
        dot = sum(x * y for x, y in zip(a[i, j], b[i, j], strict=True))
        values.append(dot / math.sqrt(sum(x * x for x in a[i, j]) * sum(y * y for y in b[i, j])))
    assert drift.cosine_similarity(jnp.asarray(a), jnp.asarray(b)) == pytest.approx(
        sum(values) / 12, abs=1e-6
    )


@pytest.mark.slow
def test_drift_is_zero_after_stage_1_and_positive_later(run):
    found = drift.measure(run, num_images=2)
    # Decoding the selected positions again gives the same queries.
    np.testing.assert_allclose([found.feature_map[1], *found.queries[1]], 1, atol=1e-5)
    assert len(found.queries[3]) == 1 + 2  # Before the decoder, and after its two layers.
    later = np.array([found.feature_map[3], *found.queries[3]])
    assert (later < 1 - 1e-5).all() and (later > 0).all()
    text = drift.table('tiny', {'SimCIS': found})
    assert f'| SimCIS | {found.feature_map[3]:.3f} | ' in text
    figure = drift.draw({'SimCIS': found})
    assert [len(axis.lines[0].get_xdata()) for axis in figure.axes] == [3, 3, 3]


def test_the_shape_of_the_finest_feature_map(run):
    images = features.validation_images(run, 2)
    assert images.shape == (2, 64, 64, 3) and images.dtype == np.uint8
    assert clusters.feature_maps(run, 1, images).shape == (2, 8, 8, 32)


@pytest.mark.parametrize('shape', [(60, 90), (90, 60), (50, 50), (33, 47)])
def test_center_crop_keeps_the_middle_of_image_and_segments(shape):
    image = np.zeros((*shape, 3), np.uint8)
    image[shape[0] // 2 - 3 : shape[0] // 2 + 3, shape[1] // 2 - 3 : shape[1] // 2 + 3] = 255
    segment_map = image[..., 0].astype(np.int32) // 255
    example = Example(image, segment_map, np.zeros(1, np.int32), np.zeros(1, bool), 'a')
    cut = features.center_crop(example, 40)
    assert cut.image.shape == (40, 40, 3) and cut.segment_map.shape == (40, 40)
    for found in (cut.image[..., 0] > 127, cut.segment_map == 1):
        rows, columns = np.nonzero(found)
        assert abs(rows.mean() - 19.5) < 1.5 and abs(columns.mean() - 19.5) < 1.5


def test_clusters_depend_on_the_direction_of_vectors_only():
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 3, (2, 6, 6))
    vectors = np.eye(4)[kinds] * rng.uniform(0.5, 9.0, (2, 6, 6, 1))
    found = clusters.cluster(vectors + rng.normal(size=vectors.shape) * 0.01, 3)
    assert found.shape == kinds.shape
    assert clusters.adjusted_rand_index(found, kinds) == 1.0
    np.testing.assert_array_equal(clusters.match_labels(found, kinds), kinds)


def test_label_matching_finds_the_best_one_to_one_assignment():
    a, b = np.random.default_rng(1).integers(0, 4, (2, 40))
    best = max(
        sum(names[x] == y for x, y in zip(a, b, strict=True))
        for names in itertools.permutations(range(4))
    )
    assert (clusters.match_labels(a, b) == b).sum() == best


@pytest.mark.parametrize('seed', range(3))
def test_the_adjusted_rand_index_counts_pairs(seed):
    a, b = np.random.default_rng(seed).integers(0, 3 + seed, (2, 25))
    pairs = list(itertools.combinations(range(25), 2))
    in_a = [a[i] == a[j] for i, j in pairs]
    in_b = [b[i] == b[j] for i, j in pairs]
    both = sum(x and y for x, y in zip(in_a, in_b, strict=True))
    expected = sum(in_a) * sum(in_b) / len(pairs)
    index = (both - expected) / ((sum(in_a) + sum(in_b)) / 2 - expected)
    assert clusters.adjusted_rand_index(a, b) == pytest.approx(index)
    assert clusters.adjusted_rand_index(a, (a + 1) % (3 + seed)) == pytest.approx(1.0)
