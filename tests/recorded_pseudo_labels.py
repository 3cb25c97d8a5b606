"""Pseudo-labels of one image against those that the code of CoMFormer and PLOP made."""

import numpy as np

from simcis_jax.types import Targets

NUM_CLASSES = 8


def assert_published(golden, case, image, num_slots, add):
    """Asserts that the segments are the recorded ones, in any order.

    `add` takes the logits of the teacher's classes and masks, the targets and the mask of past
    classes, and returns the targets with pseudo-labels. The published head has no rows of later
    classes: here they have high logits, which must not matter.
    """
    logits = golden[f'{case}/class_logits'][image]
    num_past = logits.shape[-1] - 1
    logits = np.insert(logits, [num_past] * (NUM_CLASSES - num_past), 50.0, axis=-1)
    truth, labels = (golden[f'{case}/gt_{x}{image}'] for x in ('masks', 'labels'))
    number = np.arange(1, len(truth) + 1)[:, None, None]
    targets = Targets(
        segment_map=(truth * number).sum(axis=0).astype(np.uint8),
        labels=np.pad(labels, (0, num_slots - len(labels)), constant_values=-1),
        boxes=np.zeros((num_slots, 4), np.float32),
        dropped=np.int32(0),
    )
    past = np.arange(NUM_CLASSES) < num_past
    found = add(logits, golden[f'{case}/mask_logits'][image], targets, past)
    masks, labels = golden[f'{case}/masks{image}'], golden[f'{case}/labels{image}']
    assert (found.labels[len(labels) :] == -1).all() and found.dropped == 0
    ours = [(int(x), found.segment_map == i + 1) for i, x in enumerate(found.labels) if x >= 0]
    assert sorted(x for x, _ in ours) == sorted(labels)
    for label, mask in zip(labels, masks, strict=True):
        assert any(x == label and (m == mask).all() for x, m in ours)
