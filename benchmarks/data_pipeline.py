"""Images per second of the training data pipeline on one core, compared with OpenCV alone.

    python -m benchmarks.data_pipeline --root=DIR --prepared=DATA/NAME

DIR is a folder in COCO panoptic format, DATA/NAME the data set that `simcis_jax.prepare` made of
it. All variants read the same images in the same order on one thread, and its CPU time is measured.
The bare loops only decode and resize, to the same random scales as the augmentation: no crop,
colour change or flip, and no targets. One reads the image and the PNG of its segments, as a folder
must; the other reads the image alone. Afterwards the iterator of a real run reads the prepared
images, and its resident memory is printed.
"""

from __future__ import annotations

import functools
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
from simcis_jax.data.prepared import Prepared

ROOT = flags.DEFINE_string('root', None, 'Folder in COCO panoptic format.', required=True)
PREPARED = flags.DEFINE_string('prepared', None, 'The same data set, prepared.', required=True)
SPLIT = flags.DEFINE_string('split', 'train', 'Split to read.')
SIZE = flags.DEFINE_integer('size', 640, 'Side of the crop in pixels.')
NUM_IMAGES = flags.DEFINE_integer('num_images', 200, 'Images per timing.')
REPEATS = flags.DEFINE_integer('repeats', 5, 'Timings per variant, taken in turn.')
ITERATED = flags.DEFINE_integer('iterated', 2000, 'Images that the iterator reads.')


def resident_mib() -> float:
    """Current resident memory of this process."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def images_per_second(prepare: Callable[[int], object], indices: range) -> float:
    """Calls of `prepare` per second of CPU time of this thread."""
    start = time.thread_time()
    for index in indices:
        prepare(index)
    return len(indices) / (time.thread_time() - start)


def main(_) -> None:
    """Runs the benchmark and prints the results."""
    cv2.setNumThreads(1)
    root, size = Path(ROOT.value), SIZE.value
    sources = {
        'folder in COCO format': coco_panoptic_split(root, SPLIT.value),
        'prepared data set': Prepared(PREPARED.value, SPLIT.value),
    }
    source = sources['prepared data set']
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

    def bare(read_segments, index):
        image_file, segments_file = files[index % len(files)]
        image = cv2.imdecode(np.fromfile(image_file, np.uint8), cv2.IMREAD_COLOR)
        short_side = int(np.random.default_rng(index).choice(multiples) * size)
        height, width = augment.resized_shape(
            *image.shape[:2], short_side=short_side, max_side=4 * size
        )
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        if not read_segments:
            return resized
        segments = cv2.imdecode(np.fromfile(segments_file, np.uint8), cv2.IMREAD_COLOR)
        return resized, cv2.resize(segments, (width, height), interpolation=cv2.INTER_NEAREST)

    def full(source, index):
        row = source[index % len(source)], classes
        return augmentation.random_map(row, np.random.default_rng(index))

    variants = {
        'bare, image and PNG': functools.partial(bare, True),
        'bare, image alone': functools.partial(bare, False),
    }
    variants |= {name: functools.partial(full, source) for name, source in sources.items()}
    indices = range(NUM_IMAGES.value)
    for prepare in variants.values():
        images_per_second(prepare, range(len(indices) // 4))
    rates = {name: [] for name in variants}
    for _ in range(REPEATS.value):
        for name, prepare in variants.items():
            rates[name].append(images_per_second(prepare, indices))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    with_png, alone = medians['bare, image and PNG'], medians['bare, image alone']
    for name, values in rates.items():
        rate = medians[name]
        print(
            f'{name:20} {rate:6.1f} images/s on one core ({min(values):.1f} to {max(values):.1f}), '
            f'{rate / with_png:.2f} of image and PNG, {rate / alone:.2f} of image alone'
        )

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
