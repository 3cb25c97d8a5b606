"""Evaluation of images of many sizes, for one or several tasks, on one or several devices."""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import commands
import cv2
import evaluated
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import HERE
from evaluated import CATEGORIES, GROUPS, SIZES, ColorNetwork, Rectangles
from pycocotools import mask as coco

from simcis_jax.data import augment
from simcis_jax.data.source import Example
from simcis_jax.evaluation import panoptic_quality
from simcis_jax.evaluation.mean_iou import PixelCounts, miou_scores
from simcis_jax.evaluation.overlap import overlap_table
from simcis_jax.evaluation.packed_instances import PackedInstances
from simcis_jax.evaluation.panoptic_quality import PQCounts, pq_scores
from simcis_jax.evaluation.postprocess import panoptic_inference, semantic_inference
from simcis_jax.evaluation.tasks import InstanceTask, SemanticTask
from simcis_jax.runtime.compilation import shared

TASKS = ('panoptic', 'semantic', 'instance')
SEEN = np.arange(6) < 5


@pytest.fixture(scope='module')
def everything():
    """All tasks at once: the report, the picture, the network's input shapes, and the output."""
    traced, apply = [], ColorNetwork.apply

    def spy(self, variables, image, *args, **kwargs):
        traced.append(image.shape)
        return apply(self, variables, image, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ColorNetwork, 'apply', spy)
        shared.cache_clear()  # So that it is traced here.
        with contextlib.redirect_stdout(io.StringIO()) as output:
            report, picture = evaluated.evaluate(tasks=TASKS)
    return report, picture, traced, output.getvalue().splitlines()


@pytest.fixture(scope='module')
def alone():
    """Report and picture of each task on its own."""
    return {task: evaluated.evaluate(tasks=(task,)) for task in TASKS}


def resized(planes, shape):
    """Planes [n, h, w] resized bilinearly by OpenCV."""
    return np.stack([cv2.resize(plane, shape[::-1]) for plane in planes])


def predictions(example):
    """Class logits [Q, C] of a single image, mask logits of its padded input, and its sizes."""
    original = example.image.shape[:2]
    size = augment.resized_shape(*original, short_side=63, max_side=160)
    padded = tuple(-(-side // 32) * 32 for side in size)
    image = np.zeros((1, *padded, 3), np.uint8)
    image[0, : size[0], : size[1]] = augment.resize_image(example.image, *size)
    colors = np.array(CATEGORIES.colors, np.float32)
    result = ColorNetwork().apply({'params': {'colors': colors}}, image, SEEN, size=None)
    masks = resized(np.asarray(result.mask_logits(-1)[0]), padded)
    return result.class_logits[-1][0], masks, size, original


def test_panoptic_scores_equal_those_of_single_images(everything):
    strict, seen_only = PQCounts.zeros(6), PQCounts.zeros(6)
    infer = jax.jit(panoptic_inference)
    for example in map(Rectangles().__getitem__, range(len(SIZES))):
        class_logits, masks, size, original = predictions(example)
        result = infer(
            class_logits,
            resized(masks[:, : size[0], : size[1]], original),
            is_thing=jnp.array(CATEGORIES.is_thing),
            seen=SEEN,
            object_mask_threshold=0.3,
            overlap_threshold=0.6,
        )
        overlap = overlap_table(
            np.asarray(result.segment_map),
            len(result.labels),
            example.segment_map,
            len(example.labels),
        )
        segments = (overlap, result.labels, example.labels)
        rest = (example.crowd, 6)
        strict += panoptic_quality.count(*segments, *rest, evaluated=SEEN)
        seen_only += panoptic_quality.count(*segments, *rest, evaluated=SEEN, unseen_is_void=True)
    for group, classes in GROUPS.items():
        for metric in ('pq', 'sq', 'rq'):
            expected = pq_scores(strict, classes)[metric]
            assert everything[0][metric][group] == pytest.approx(expected, rel=1e-9)
        expected = pq_scores(seen_only, classes)['pq']
        assert everything[0]['pq_seen_only'][group] == pytest.approx(expected, rel=1e-9)
    assert everything[0]['pq_seen_only']['all'] > everything[0]['pq']['all'] + 1


def pixels_by_loops(resize):
    """The pixel counts of semantic results with resized logits or resized labels."""
    confusion = np.zeros((7, 7), int)
    infer = jax.jit(semantic_inference)
    for example in map(Rectangles().__getitem__, range(len(SIZES))):
        class_logits, masks, size, original = predictions(example)
        settings = dict(seen=SEEN, object_mask_threshold=0.4, overlap_threshold=0.6)
        if resize == 'labels':
            labels = np.asarray(infer(class_logits, masks, **settings))[: size[0], : size[1]]
            one_hot = (labels == np.arange(7)[:, None, None]).astype(np.float32)
            labels = resized(one_hot, original).argmax(axis=0)
        else:
            labels = infer(
                class_logits, resized(masks[:, : size[0], : size[1]], original), **settings
            )
        for segment, label in zip(example.segment_map.ravel(), np.ravel(labels), strict=True):
            true = example.labels[segment - 1] if segment else 6
            confusion[label, true if true < 5 else 6] += 1
    assigned = confusion[:-1, :-1]
    return PixelCounts(
        true=confusion[:, :-1].sum(axis=0),
        hits=np.diag(assigned),
        unassigned=confusion[-1, :-1],
        predicted=assigned.sum(axis=1),
    )


@pytest.mark.parametrize('resize', ['logits', 'labels'])
def test_semantic_scores_equal_those_of_single_images(everything, resize):
    report = everything[0]
    if resize == 'labels':
        report, _ = evaluated.evaluate(tasks=('semantic',), semantic_resize='labels')
        assert report['miou'] != everything[0]['miou']
    counts = pixels_by_loops(resize)
    for group, classes in GROUPS.items():
        for metric, expected in miou_scores(counts, classes).items():
            assert report[metric][group] == pytest.approx(expected, rel=1e-9)


def test_the_network_runs_once_for_all_tasks(everything, alone):
    report, _, traced, _ = everything
    assert len(traced) == len(set(traced)) == 4  # Once per padded shape, not per canvas.
    for own, _ in alone.values():
        per_class = own.pop('per_class')
        assert own.items() <= report.items()
        for name, scores in per_class.items():
            assert scores.items() <= report['per_class'][name].items()


def test_instances_are_things_of_seen_classes(everything):
    per_class = everything[0]['per_class']
    assert list(per_class) == ['sky', 'grass', 'car', 'person', 'bus']
    assert [per_class[name]['ap'] is None for name in per_class] == [
        True,
        True,
        False,
        False,
        False,
    ]
    mean = np.mean([per_class[name]['ap50'] for name in ('person', 'bus')])
    assert everything[0]['ap50']['novel'] == pytest.approx(mean)
    assert per_class['car']['ap50'] > 5


def test_true_instances_are_things_of_seen_classes_and_keep_their_crowd_flag():
    names = ['sky', 'car', 'person', 'unseen']
    example = Example(
        image=np.zeros((4, 8, 3), np.uint8),
        segment_map=np.tile(np.repeat(np.arange(1, 5), 2), (4, 1)),
        labels=np.array([CATEGORIES.names.index(name) for name in names]),
        crowd=np.array([False, False, True, False]),
        image_id='stripes',
    )
    none = np.zeros(0, int)
    nothing = PackedInstances((), none, none, np.zeros(0))
    (image,) = InstanceTask(CATEGORIES, num_instances=10).count(nothing, example, SEEN)
    masks = [coco.decode(mask) for mask in image.true.masks]
    np.testing.assert_array_equal(masks, example.segment_map == np.array([2, 3])[:, None, None])
    assert image.true.labels.tolist() == example.labels[[1, 2]].tolist()
    assert image.true.crowd.tolist() == [False, True]


def test_the_picture_has_a_column_for_every_task(everything, alone):
    column = 384 + 12
    for _, picture in alone.values():
        assert everything[1].shape[1] - picture.shape[1] == 2 * column
        height = min(len(picture), len(everything[1])) - 100  # Above the legend.
        np.testing.assert_array_equal(
            picture[60:height, : 2 * column], everything[1][60:height, : 2 * column]
        )


def test_shapes_and_progress_are_printed(everything):
    lines = everything[3]
    assert lines[0] == 'evaluation: 7 images, 4 network shapes, 5 output shapes'
    assert lines[-1].startswith('evaluation 7/7') and lines[-1].endswith('left 0:00')


@pytest.mark.parametrize('mask_unseen', [True, False])
def test_an_unseen_class_is_predicted_only_if_it_is_not_masked(monkeypatch, mask_unseen):
    monkeypatch.setattr(evaluated, 'SIZES', SIZES[:1])
    results, count = [], SemanticTask.count
    monkeypatch.setattr(
        SemanticTask, 'count', lambda task, *args: results.append(args[0]) or count(task, *args)
    )
    evaluated.evaluate(mask_unseen=mask_unseen, tasks=('semantic',), overlap_threshold=0.0)
    (labels,) = results
    assert (labels == CATEGORIES.names.index('unseen')).any() != mask_unseen


def test_without_images_of_seen_classes_there_is_no_score(monkeypatch):
    monkeypatch.setattr(Rectangles, 'classes_of', lambda self, index: frozenset())
    report, _ = evaluated.evaluate(tasks=TASKS)
    assert {report[metric]['all'] for metric in ('pq', 'miou', 'ap', 'ap50')} == {None}


def run_processes(num_processes, num_devices):
    """The reports that the processes print."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={num_devices}'
    processes = [
        subprocess.Popen(
            [sys.executable, evaluated.__file__, str(index), str(num_processes), str(port)],
            env=os.environ | {'XLA_FLAGS': flags, 'PYTHONPATH': str(HERE.parent)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(num_processes)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize(('num_processes', 'num_devices'), [(1, 3), (2, 2)])
def test_devices_and_processes_share_the_images(everything, num_processes, num_devices):
    outputs = run_processes(num_processes, num_devices)
    assert ['7 images' in output for output in outputs] == [True] + [False] * (num_processes - 1)
    for output in outputs:
        result = json.loads(output.splitlines()[-1])
        evaluated.assert_close(result['report'], everything[0])
        assert result['picture'] == int(everything[1].astype(int).sum())


def test_merged_duplicates_are_scored_like_one_query():
    options = dict(object_mask_threshold=0.6, num_pictures=0, options=dict(num_images=2))
    single, _ = evaluated.evaluate(**options)
    options['network'] = evaluated.DuplicateNetwork
    apart, _ = evaluated.evaluate(**options)
    merged, _ = evaluated.evaluate(duplicate_overlap=0.5, **options)
    evaluated.assert_close(merged, single)
    assert single['pq']['all'] > 40 and apart['pq']['all'] == 0


# Prints the resident memory in MiB after each of 25 evaluations.
REPEATED = """
import contextlib, gc, io, pathlib, resource
import evaluated

for _ in range(25):
    with contextlib.redirect_stdout(io.StringIO()):
        evaluated.evaluate()
    gc.collect()
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
    print(pages * resource.getpagesize() / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='reads the memory from /proc')
def test_resident_memory_is_flat_over_20_evaluations():
    process = commands.start(
        ('-c', REPEATED), environment={'MALLOC_ARENA_MAX': '1'}, stdout=subprocess.PIPE
    )
    output, _ = process.communicate()
    resident = [float(line) for line in output.split()]
    assert len(resident) == 25
    assert min(resident[-5:]) - min(resident[5:10]) < 2
