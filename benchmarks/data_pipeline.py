"""Images a second that one core prepares for training, beside a bare decode and resize in OpenCV.

    python -m benchmarks.data_pipeline --root=DIR --split=train

DIR is a folder in COCO panoptic format. Both sides read the same files in the same order on one
thread. The bare loop decodes the picture and its annotation and resizes both to the same random
scales as the augmentation; it crops, colours and mirrors nothing and makes no targets. Resident
memory is printed before and after, and once more after the images were gone through by the
iterator of a real run.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from absl import app, flags

from simcis_jax.data import augment
from simcis_jax.data.coco_panoptic import coco_panoptic_split
from simcis_jax.data.pipeline import Augmentation, train_iterator

ROOT = flags.DEFINE_string('root', None, 'Folder in COCO panoptic format.', required=True)
SPLIT = flags.DEFINE_string('split', 'train', 'Split to read.')
SIZE = flags.DEFINE_integer('size', 640, 'Side of the crop in pixels.')
NUM_IMAGES = flags.DEFINE_integer('num_images', 200, 'Images of a timing.')
REPEATS = flags.DEFINE_integer('repeats', 5, 'Timings of each side, in turn.')
ITERATED = flags.DEFINE_integer('iterated', 2000, 'Images that the iterator goes through.')


def resident_mib() -> float:
    """Resident memory of this process now."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def images_per_second(prepare: Callable[[int], object], indices: range) -> float:
    """Rate of one call for each index."""
    start = time.perf_counter()
    for index in indices:
        prepare(index)
    return len(indices) / (time.perf_counter() - start)


def main(_) -> None:
    """Measures and prints."""
    cv2.setNumThreads(1)
    root, size = Path(ROOT.value), SIZE.value
    source = coco_panoptic_split(root, SPLIT.value)
    annotations = json.loads((root / f'panoptic_{SPLIT.value}.json').read_text())
    names = {image['id']: image['file_name'] for image in annotations['images']}
    files = [
        (
            root / 'images' / SPLIT.value / names[entry['image_id']],
            root / f'panoptic_{SPLIT.value}' / entry['file_name'],
        )
        for entry in annotations['annotations']
    ]
    augmentation = Augmentation(size=size, max_segments=100)
    classes = range(len(source.categories))
    multiples = np.linspace(*augmentation.scale_range, augmentation.scale_steps)

    def bare(index):
        image_file, annotation_file = files[index % len(files)]
        image = cv2.imdecode(np.fromfile(image_file, np.uint8), cv2.IMREAD_COLOR)
        annotation = cv2.imdecode(np.fromfile(annotation_file, np.uint8), cv2.IMREAD_COLOR)
        short_side = int(np.random.default_rng(index).choice(multiples) * size)
        height, width = augment.resized_shape(
            *image.shape[:2], short_side=short_side, max_side=4 * size
        )
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        return resized, cv2.resize(annotation, (width, height), interpolation=cv2.INTER_NEAREST)

    def ours(index):
        row = source[index % len(source)], classes
        return augmentation.random_map(row, np.random.default_rng(index))

    indices = range(NUM_IMAGES.value)
    for warm in (bare, ours):
        images_per_second(warm, range(len(indices) // 4))
    rates = {'bare decode and resize': [], 'full augmentation and targets': []}
    for _ in range(REPEATS.value):
        for side, prepare in zip(rates, (bare, ours), strict=True):
            rates[side].append(images_per_second(prepare, indices))
    for side, values in rates.items():
        print(
            f'{side:30} {statistics.median(values):6.1f} images/s on one core '
            f'({min(values):.1f} to {max(values):.1f})'
        )
    bare_rate, our_rate = map(statistics.median, rates.values())
    print(f'{"share":30} {our_rate / bare_rate:6.2f}')

    iterator = train_iterator(
        source,
        images=dict.fromkeys(range(len(source)), classes),
        batch_size=8,
        seed=0,
        num_threads=2,
        size=size,
        max_segments=100,
    )
    quarter = max(1, ITERATED.value // 8 // 4)
    for part in range(5):
        for _ in range(quarter):
            next(iterator)
        print(f'after {(part + 1) * quarter * 8:5} images: {resident_mib():.0f} MiB resident')
    iterator.close()


if __name__ == '__main__':
    app.run(main)
