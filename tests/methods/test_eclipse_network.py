"""The decoder of ECLIPSE, its logit manipulation and its segments against the published code."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from recorded_eclipse import STAGES, decoded, network, stage_of

from simcis_jax.evaluation.postprocess import panoptic_inference, semantic_inference
from simcis_jax.methods.eclipse import ECLIPSE
from simcis_jax.model.resize import resize

GOLDEN = Path(__file__).parent / 'golden' / 'eclipse.npz'
NUM_CLASSES = 13
CLOSE = dict(rtol=1e-5, atol=2e-5)  # Float32 and float64 differ by 5e-6.


@pytest.fixture(scope='module')
def golden():
    return dict(np.load(GOLDEN))


# Decoder


def test_the_decoder_is_that_of_the_published_code(golden):
    ours = decoded()
    np.testing.assert_allclose(ours.class_logits[-1], golden['raw/class_logits'], **CLOSE)
    masks = ours.mask_logits()[:, :, ::4, ::4]
    np.testing.assert_allclose(masks, golden['masks'], **CLOSE)
    first = ours.mask_logits(0)[:, ::5, ::4, ::4]
    np.testing.assert_allclose(first, golden['masks_first'], **CLOSE)
    np.testing.assert_allclose(ours.queries[:, :, ::5], golden['all/queries'], **CLOSE)


@pytest.mark.slow
def test_prompts_may_have_one_position_for_all_layers(golden):
    ours = decoded(shallow=True)
    logits = ECLIPSE(deltas=SHALLOW_DELTAS).class_logits(ours, None)
    np.testing.assert_allclose(logits, golden['shallow/class_logits'], **CLOSE)
    masks = ours.mask_logits()[:, :, ::8, ::8]
    np.testing.assert_allclose(masks, golden['shallow/masks'], **CLOSE)


SHALLOW_DELTAS = 0.4, 0.5, 0.6


@pytest.mark.slow
def test_earlier_queries_predict_the_same_whatever_prompts_are_added():
    """And the newest prompts, which training decodes alone, predict what they do among others."""
    everything = decoded()
    parts = [('first', slice(0, 20)), ('newest', slice(25, 30))]
    for rows, where in parts:
        alone = decoded(rows)
        for field in ('class_logits', 'mask_embeddings', 'queries'):
            ours, theirs = getattr(alone, field), getattr(everything, field)[:, :, where]
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(alone.stages[0], everything.stages[0][where])


@pytest.mark.slow  # The decoder with prompts is compared in any case.
def test_the_base_model_is_that_of_the_published_code(golden):
    logits = decoded('first', number=1).class_logits
    known = [*STAGES[0], NUM_CLASSES]
    ours = logits[..., jnp.array(known)]
    np.testing.assert_allclose(ours, golden['step0/train_class_logits'], **CLOSE)
    at_inference = ECLIPSE().class_logits(decoded(number=1), stage_of(1)[1].seen)
    assert (at_inference[:, 20:, :-1] < -1e8).all()  # There are no prompts yet.
    ours = at_inference[:, :20, jnp.array(known)]
    np.testing.assert_allclose(ours, golden['step0/class_logits'], **CLOSE)


def test_prompts_of_stages_to_come_predict_nothing():
    seen = stage_of(2)[1].seen
    ours = decoded(number=2)
    logits = ECLIPSE(deltas=(0.0,)).class_logits(ours, seen)
    assert (logits[..., 10:13] < -1e8).all() and (logits[:, 25:, :-1] < -1e8).all()
    after = ECLIPSE(deltas=(0.0,)).class_logits(decoded(), None)
    keep = jnp.array([*range(10), NUM_CLASSES])
    np.testing.assert_allclose(logits[:, :25, keep], after[:, :25, keep], **CLOSE)


# Inference


@pytest.mark.parametrize(
    ('case', 'deltas'),
    [
        ('positive', (0.4, 0.5, 0.6)),
        ('mixed', (0.6, -0.6, -0.3)),
        ('negative', (-0.4, -0.6, -0.6)),
        ('zero', (0.0,)),
        ('none', ()),
        ('scalar', (0.5,)),
        ('short', (0.3, 0.7)),
        ('long', (0.4, 0.6, 0.6, 0.9)),
    ],
)
def test_manipulated_logits_are_those_of_the_published_code(golden, case, deltas):
    ours = ECLIPSE(deltas=deltas).class_logits(decoded(), None)
    np.testing.assert_allclose(ours, golden[f'{case}/class_logits'], **CLOSE)
    assert case in ('zero', 'none') or (ours != decoded().class_logits[-1])[..., -1].any()


@pytest.mark.parametrize('image', [0, 1])
@pytest.mark.parametrize('case', ['mixed', 'negative', 'handmade'])
def test_segments_are_those_of_the_published_code(golden, case, image):
    logits = jnp.asarray(golden[f'{case}/class_logits'][image])
    masks = resize(decoded().mask_logits()[image], (128, 160))
    is_thing = np.isin(np.arange(NUM_CLASSES), golden['things'])
    options = dict(head='independent', object_mask_threshold=0.0, overlap_threshold=0.0)
    panoptic = panoptic_inference(logits, masks, is_thing=jnp.asarray(is_thing), **options)
    published = golden[f'{case}/{image}/segment_map']
    assert (np.asarray(panoptic.segment_map) != published).mean() < 1e-3
    ids, categories, _ = golden[f'{case}/{image}/segments'].T
    np.testing.assert_array_equal(panoptic.labels[ids - 1], categories - 1)
    assert (panoptic.labels >= 0).sum() == len(ids) > 0
    semantic = np.asarray(semantic_inference(logits, masks, **options))
    ours = np.where(semantic == NUM_CLASSES, 0, semantic + 1)
    assert (ours != golden[f'{case}/{image}/semantic']).mean() < 1e-3


def test_one_stage_has_no_prompts():
    model = ECLIPSE().make_model([stage_of(1)[0]], dict(queries='learned', boxes=False))
    assert model.known == (STAGES[0],) and model.columns.tolist() == list(range(7))


def test_classes_of_any_order_and_number_have_a_column_of_their_own():
    stages = (4, 0), (6, 2), (5,), (1, 3)
    model = network(stages)
    assert sorted(model.columns) == [0, 1, 2, 3, 4, 6, 7]  # Column 5 has no class.
    assert model.columns[[4, 0, 6, 2, 5, 1, 3]].tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert model.class_stages.tolist() == [0, 3, 1, 3, 0, 2, 1]
