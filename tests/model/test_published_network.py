"""The whole network against arrays that the published code computed with the same weights."""

import functools
from pathlib import Path
from types import SimpleNamespace

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import parity
import published
import pytest

from simcis_jax.evaluation import postprocess

TOLERANCE = 2e-5  # Relative norm of the difference; two float32 runs differ by 2e-6.

THING_IDS = Path(__file__).parents[1] / 'evaluation' / 'golden' / 'post_handmade.npz'


@pytest.fixture(
    scope='module',
    params=[
        pytest.param(('eval_t1_r50', 'resnet50', 'S6:'), marks=pytest.mark.slow),
        ('eval_t2_r50_odd', 'resnet50', 'S14:'),
        pytest.param(('eval_t1_r50_wide', 'resnet50', 'S6:'), marks=pytest.mark.slow),
        pytest.param(('eval_t1_r101_sem', 'resnet101', 'S6:'), marks=pytest.mark.slow),
    ],
    ids=lambda param: param[0],
)
def observed(request):
    """The outputs of the network for the images of a file."""
    file, backbone, salt = request.param
    golden = published.without_virtual_query_masks(golden_weights.load(file))
    image, size = published.padded(golden['input/images'])
    params = published.weights(salt, backbone)
    predictions, arrays = published.forward(published.network(backbone), params, image, size)
    return SimpleNamespace(
        file=file, golden=golden, predictions=predictions, arrays=arrays, size=size
    )


def test_activations_and_selected_positions_equal_the_published_code(observed):
    compared = parity.names(observed.golden, *published.ACTIVATIONS)
    compared = [name for name in compared if '/attn_' not in name]
    assert 'sel/topk' in compared and len(compared) == 101
    parity.compare(observed.file, observed.golden, observed.arrays, compared, TOLERANCE)


def test_attention_masks_equal_the_published_code(observed):
    published.compare_attention(observed.file, observed.golden, observed.arrays)


@functools.partial(jax.jit, static_argnames=('padded_size', 'output_shape'))
def segment(class_logits, mask_logits, size, is_thing, unseen, padded_size, output_shape):
    """All segmentations of one image, and its resized masks."""
    masks = postprocess.resized_masks(
        mask_logits,
        padded_size=padded_size,
        size=size,
        original_size=jnp.array(output_shape),
        output_shape=output_shape,
    )
    semantic = postprocess.semantic_inference(class_logits, masks, rejected=unseen)
    panoptic = postprocess.panoptic_inference(
        class_logits, masks, is_thing=is_thing, object_mask_threshold=0.3
    )
    instances = postprocess.instance_inference(class_logits, masks, is_thing=is_thing)
    return masks, semantic, panoptic, instances


@functools.partial(jax.jit, static_argnames=('padded_size', 'output_shape'))
def segment_before_resizing(class_logits, mask_logits, size, unseen, padded_size, output_shape):
    """Label maps of the padded image, before and after resizing, as the published configs do."""
    masks = postprocess.resized_masks(
        mask_logits,
        padded_size=padded_size,
        size=jnp.array(padded_size),
        original_size=jnp.array(padded_size),
        output_shape=padded_size,
    )
    labels = postprocess.semantic_inference(class_logits, masks, rejected=unseen)
    resized = postprocess.resized_labels(
        labels,
        num_labels=published.NUM_CLASSES + 1,
        size=size,
        original_size=jnp.array(output_shape),
        output_shape=output_shape,
    )
    return labels, resized


def segmentations(observed):
    """The arrays of post-processing; queries of the first unseen class are rejected."""
    predictions = observed.predictions
    with np.load(THING_IDS) as golden:
        is_thing = np.isin(np.arange(published.NUM_CLASSES), golden['thing_ids'])
    num_seen = 110 if observed.file.startswith('eval_t2') else 100
    unseen = np.arange(published.NUM_CLASSES) == num_seen
    found = {}
    for image, size in enumerate(observed.size):
        shapes = dict(
            padded_size=tuple(4 * x for x in predictions.mask_features.shape[1:3]),
            output_shape=tuple(observed.golden['input/output_size'].tolist()),
        )
        logits = predictions.class_logits[-1, image]
        mask_logits = observed.arrays['dec/layer8/masks'][image]
        masks, semantic, panoptic, instances = jax.device_get(
            segment(logits, mask_logits, size, is_thing, unseen, **shapes)
        )
        valid = instances.labels >= 0
        labels = panoptic.labels[: panoptic.segment_map.max()]
        arrays = {
            'masks_resized': masks,
            'sem_label': semantic,
            'panoptic_seg': panoptic.segment_map,
            'panoptic_segments': np.stack(
                [np.arange(len(labels)) + 1, labels, is_thing[labels]], 1
            ),
            'inst_scores': instances.scores[valid],
            'inst_classes': instances.labels[valid],
            'inst_masks_packed': np.packbits(instances.masks[valid], axis=-1),
        }
        if f'post/b{image}/sem_label_padded' in observed.golden:
            arrays['sem_label_padded'], arrays['sem_label'] = segment_before_resizing(
                logits, mask_logits, size, unseen, **shapes
            )
        found |= {f'post/b{image}/{name}': array for name, array in arrays.items()}
    return found


def sort_instances(arrays, name):
    """Sorts instances by class, then by mask."""
    masks = [mask.tobytes() for mask in arrays[f'{name}_masks_packed']]
    rows = zip(arrays[f'{name}_classes'], masks, strict=True)
    order = [i for i, _ in sorted(enumerate(rows), key=lambda row: row[1])]
    for part in ('scores', 'classes', 'masks_packed'):
        arrays[f'{name}_{part}'] = arrays[f'{name}_{part}'][order]


def test_segmentations_equal_the_published_code(observed):
    compared = parity.names(observed.golden, 'post/')
    assert len(compared) >= 3
    arrays, golden = segmentations(observed), dict(observed.golden)
    for image in range(len(observed.size)):
        if f'post/b{image}/inst_scores' in golden:  # The order of equal scores is arbitrary.
            for instances in (arrays, golden):
                sort_instances(instances, f'post/b{image}/inst')
    parity.compare(observed.file, golden, arrays, compared, TOLERANCE)
