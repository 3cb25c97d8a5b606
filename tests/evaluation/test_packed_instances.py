"""Instances that are packed and copied to the host, against those of `instance_inference`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as coco

from simcis_jax.evaluation.packed_instances import MASKS_AT_ONCE, PackedInstances, pack
from simcis_jax.evaluation.postprocess import instance_inference

IS_THING = jnp.arange(6) >= 2
SHAPE = (21, 34)


def scene(seed, num_queries=20):
    """Class logits, and mask logits of which every second is empty."""
    rng = np.random.default_rng(seed)
    masks = rng.normal(size=(num_queries, *SHAPE)).astype(np.float32)
    masks[::2] = -1
    return rng.normal(-1, 2, (num_queries, 6)).astype(np.float32), masks


@jax.jit
def infer(class_logits, masks):
    instances = instance_inference(class_logits, masks, is_thing=IS_THING, num_instances=40)
    return instances, pack(instances, masks)


def infer_batch(seeds):
    return jax.tree.map(lambda *x: jnp.stack(x), *(infer(*scene(seed)) for seed in seeds))


def row_of(tree, row):
    return jax.tree.map(lambda x: x[row], tree)


def test_every_instance_with_a_pixel_has_its_mask():
    whole, packed = infer_batch(range(4))
    fetched = packed.fetch()
    num_empty = 0
    for row in range(4):
        expected, mine = row_of(whole, row), row_of(fetched, row)
        has_pixels = np.asarray(expected.masks).any(axis=(1, 2))
        num_empty += ((np.asarray(expected.labels) >= 0) & ~has_pixels).sum()
        np.testing.assert_array_equal(mine.labels, np.where(has_pixels, expected.labels, -1))
        np.testing.assert_array_equal(mine.scores, expected.scores)
        masks = mine.masks(SHAPE)
        for k in np.flatnonzero(has_pixels):
            np.testing.assert_array_equal(coco.decode(masks[mine.slots[k]]), expected.masks[k])
    assert num_empty > 0


def test_masks_that_no_instance_has_are_not_copied():
    whole, packed = infer_batch(range(4))
    has_pixels = np.asarray(whole.masks).any(axis=(2, 3))
    queries = [set(q[kept].tolist()) for q, kept in zip(whole.queries, has_pixels, strict=True)]
    most = max(map(len, queries))
    assert 0 < most <= 10
    assert sum(x.shape[1] for x in packed.edges) == 20
    assert sum(x.shape[1] for x in packed.fetch().edges) == -(-most // MASKS_AT_ONCE) * 8
    for row, needed in enumerate(queries):
        encoded = row_of(packed.fetch(), row).masks(SHAPE)
        assert [coco.area(mask) > 0 for mask in encoded].count(True) == len(needed)


@pytest.mark.parametrize('num_kept', [0, 1, 9, 17])
def test_no_number_of_masks_compiles_anything(num_kept):
    packed = PackedInstances(
        tuple(jnp.zeros((1, n, 34, 3), jnp.uint8) for n in (8, 8, 4)),
        jnp.arange(20)[None],
        jnp.where(jnp.arange(20) < num_kept, 2, -1)[None],
        jnp.ones((1, 20)),
    )
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(compiling := _listener(compiled))
    fetched = packed.fetch()
    jax.monitoring.unregister_event_duration_listener(compiling)
    assert compiled == [] and len(fetched.edges) == -(-num_kept // MASKS_AT_ONCE)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(fetched))


def _listener(events):
    return lambda event, _, **__: events.append(event) if 'compile' in event else None
