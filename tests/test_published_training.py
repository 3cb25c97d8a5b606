"""Whole training steps against those of the published code: losses, matches, gradients, updates.

Weights, images, random points and drawn virtual queries are the recorded ones; teacher,
pseudo-labels, matches, losses, gradients and the AdamW update are computed here. Where this code
differs on purpose, the tests use the published choice: all prototypes select queries, all classes
but one may be pseudo-labels, images with a class outside the stage get none, replayed teacher
queries start at the boxes of the student's selection, and the bank stores the matches of a second
matching.
"""

import numpy as np
import parity
import published
import pytest
from recorded import NUM_CLASSES, SETS
from recorded_steps import CASES, compute_step
from recorded_updates import compute_update

TOLERANCE = 1e-4  # Norm of the difference over norm.
# With teacher, CSL and VQ. Each step compiles for half a minute, so the others are slow.
FAST = 'train_t2_pan_100-10'


def params_of(cases):
    return [
        pytest.param(x, id=x.file, marks=[] if x.file == FAST else [pytest.mark.slow])
        for x in cases
    ]


@pytest.fixture(scope='module', params=params_of(CASES))
def step(request):
    return compute_step(request.param)


def compare(step, *beginnings, **how):
    compared = [x for x in parity.names(step.golden, *beginnings) if '/attn_' not in x]
    parity.compare(
        step.case.file, step.golden, step.arrays, compared, **dict(tolerance=TOLERANCE) | how
    )


def compare_entries(step, *beginnings):
    compared = parity.names(step.golden, *beginnings)
    parity.compare_entries(step.case.file, step.golden, step.arrays, compared)


def test_teacher_and_pseudo_labels_equal_the_published_code(step):
    if step.case.teacher_salt is None:
        pytest.skip('The first stage has no teacher.')
    compare(step, 'teacher/', 'psd/')


def test_targets_equal_the_published_code(step):
    compare(step, 'targets/')


def test_activations_and_selected_positions_equal_the_published_code(step):
    if 'sel/topk' not in step.golden:
        pytest.skip('Activations were not recorded.')
    compare(step, *published.ACTIVATIONS, tolerance=2e-5)
    published.compare_attention(step.case.file, step.golden, step.arrays)


def test_costs_and_matches_equal_the_published_code(step):
    compare(step, 'cost/')
    compare(step, *(f'assign/{name}/' for name in SETS))


def test_every_loss_equals_the_published_code(step):
    if step.case.file == 'train_t2_collect':  # Student equals teacher: the loss is rounding.
        for name in ('loss/raw/interm_kl_loss', 'loss/weighted/interm_kl_loss'):
            assert abs(step.golden.pop(name)) < 2e-6 and abs(step.arrays[name]) < 2e-6
    compare(step, 'loss/raw/', 'loss/weighted/', 'loss/total')


def test_stored_queries_of_the_recorded_matching_equal_the_published_code(step):
    compare(step, 'store/')


def test_virtual_queries_are_drawn_with_the_published_weights(step):
    if step.drawn is None:
        pytest.skip('Nothing was drawn.')
    compare(step, 'vq/sample_weights')


def test_class_statistics_count_the_published_pseudo_labels(step):
    if 'collect/psd_num' not in step.golden:
        pytest.skip('Counts were not recorded.')
    compare(step, 'collect/')


@pytest.fixture(scope='module', params=[x for x in CASES if x.updates], ids=lambda x: x.file)
def update(request):
    return compute_update(request.param)


@pytest.mark.slow
def test_the_step_reports_the_published_losses(update):
    compared = [x for x in update.arrays if x.startswith('loss/')]
    parity.compare(update.case.file, update.golden, update.arrays, compared, TOLERANCE)


@pytest.mark.slow
def test_gradients_equal_the_published_code(update):
    compare(update, 'grad/norm/', 'grad/global_norm', tolerance=1e-3, kind=parity.GRADIENTS)
    compare_entries(update, 'grad/slices/')


@pytest.mark.slow
def test_clipping_and_update_equal_the_published_code(update):
    compare(update, 'opt/clipped_global_norm', 'opt/lr_base')
    compare_entries(update, 'opt/update/', 'opt/update_norm/')


@pytest.mark.slow
def test_the_bank_holds_the_queries_that_the_loss_matched(update):
    labels = [update.golden[f'targets/b{image}/labels'] for image in (0, 1)]
    counts = np.bincount(np.concatenate(labels), minlength=NUM_CLASSES)
    np.testing.assert_array_equal(update.memory.written, counts)
