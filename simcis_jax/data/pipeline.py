"""Training input: shuffles, augments and batches the images of a source, with grain."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from simcis_jax import types
from simcis_jax.data import augment
from simcis_jax.data.source import Example, Source
from simcis_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Augmentation(grain.transforms.RandomMap):
    """Converts an example and its labelled classes to a `types.Batch` without a batch axis."""

    size: int  # Side of the crop in pixels.
    max_segments: int  # T, target slots of an image.
    scale_range: tuple[float, float] = (0.5, 2.0)  # Random shorter side, in multiples of `size`.
    scale_steps: int = 16  # Number of evenly spaced scales to choose from.
    flip: bool = True  # Mirror half of the images.
    color: bool = True  # SSD photometric distortion.
    keep_empty: bool = False  # Segments outside the crop stay targets (published).

    def random_map(
        self, element: tuple[Example, Collection[int]], rng: np.random.Generator
    ) -> types.Batch:
        """Augments an example; the segments of its labelled classes become targets."""
        example, classes = element
        example = augment.augment(
            example,
            rng,
            size=self.size,
            scale_range=self.scale_range,
            scale_steps=self.scale_steps,
            mirror=self.flip,
            color=self.color,
        )
        targets = augment.to_targets(
            example,
            classes,
            max_segments=self.max_segments,
            keep_empty=self.keep_empty,
        )
        return types.Batch(image=example.image, targets=targets)


class TrainIterator(Iterator[types.Batch]):
    """Iterates over training batches, and can resume at any position.

    Grain's own iterators silently resume with wrong batches if the number of workers has changed.
    Here batches have random access, so resuming means starting at another position.
    """

    def __init__(
        self,
        batches: grain.MapDataset[types.Batch],
        images: grain.MapDataset[np.ndarray],
        *,
        num_threads: int,
        num_workers: int,
    ):
        self._batches, self._images = batches, images
        self._num_threads = num_threads
        self._num_workers = num_workers
        self._running = None
        self.position = 0  # Number of batches returned so far.

    def __next__(self) -> types.Batch:
        if self._running is None:
            self._running = iter(self._prefetched(self._batches[self.position :]))
        batch = next(self._running)
        self.position += 1
        return batch

    def seek(self, position: int) -> None:
        """Continues with the batch at `position`."""
        self.close()
        self.position = position

    def at(self, position: int) -> tuple[types.Batch, np.ndarray]:
        """Returns the batch at a position, and the indices of its images in the source."""
        return self._batches[position], self._images[position]

    def close(self) -> None:
        """Stops threads and worker processes; requesting the next batch restarts them."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def _prefetched(self, batches: grain.MapDataset[types.Batch]) -> grain.IterDataset[types.Batch]:
        dataset = batches.to_iter_dataset(_read_options(self._num_threads))
        if self._num_workers == 0:
            return dataset
        # Grain passes absl flags to its workers, and fails if none were parsed, as in a notebook.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(
            num_workers=self._num_workers, per_worker_buffer_size=2
        )
        return dataset.mp_prefetch(options, worker_init_fn=_follow_parent)


def _follow_parent(*_: int) -> None:
    """Makes a worker exit with its parent, and ignore signals, which often go to a whole job."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@dataclasses.dataclass(frozen=True)
class _Subset:
    """A subset of the images of a source, with their labelled classes, as a grain data source."""

    source: Source
    images: Sequence[tuple[int, Collection[int]]]  # Index and labelled classes of each image.

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Example, Collection[int]]:
        image, classes = self.images[index]
        return self.source[image], classes


def train_iterator(
    source: Source,
    *,
    images: Mapping[int, Collection[int]],
    batch_size: int,
    seed: int,
    num_threads: int = 4,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    **augmentation: Any,
) -> TrainIterator:
    """Creates an endless iterator over training batches that reshuffles every epoch.

    Each batch depends only on the arguments and its position, not on the numbers of threads,
    workers and processes.

    Args:
        source: the data set.
        images: index of each image to train on -> the classes whose segments are targets in it;
            there may be fewer images than `batch_size`.
        batch_size: images in a batch, summed over all processes.
        seed: seed of order and augmentation, 0 .. 2**32 - 1.
        num_threads: number of threads that prepare batches ahead, in each worker.
        num_workers: number of worker processes; 0 = only threads of this process.
        process_index: index of this process; it yields the process_index-th of `process_count`
            equal parts of every batch.
        process_count: number of processes.
        **augmentation: the fields of `Augmentation`.

    Returns:
        An iterator of `types.Batch` with numpy leaves [batch_size / process_count, ...].

    Raises:
        InputError: there are no images, or `batch_size` is not a multiple of `process_count`.
    """
    rows = (
        _rows(source, list(images.items()))
        .seed(seed)
        .shuffle()
        .repeat(None)
        .random_map(Augmentation(**augmentation))
    )
    # The same seed and the same operations give the indices the order of the images.
    indices = grain.MapDataset.source(np.asarray(list(images))).seed(seed).shuffle().repeat(None)
    return TrainIterator(
        _process_batches(rows, batch_size, process_index, process_count),
        _process_batches(indices, batch_size, process_index, process_count),
        num_threads=num_threads,
        num_workers=num_workers,
    )


def epoch_batches(
    source: Source,
    *,
    images: Mapping[int, Collection[int]],
    batch_size: int,
    seed: int,
    num_threads: int = 4,
    process_index: int = 0,
    process_count: int = 1,
    **augmentation: Any,
) -> Iterator[tuple[types.Batch, np.ndarray]]:
    """Iterates once over `images`, in order and with the training augmentation.

    The arguments are those of `train_iterator`. Yields pairs of a batch and `real` [B] bool. The
    last batch is filled up with images from the start, for which `real` is False, so that they can
    be left out of statistics.
    """
    num_rows = -(-len(images) // batch_size) * batch_size
    padded = list(itertools.islice(itertools.cycle(images.items()), num_rows))
    rows = _rows(source, padded).seed(seed).random_map(Augmentation(**augmentation))
    batches = _process_batches(rows, batch_size, process_index, process_count)
    real = (np.arange(num_rows) < len(images)).reshape(
        -1, process_count, batch_size // process_count
    )
    return zip(
        batches.to_iter_dataset(_read_options(num_threads)), real[:, process_index], strict=True
    )


def _rows(
    source: Source, images: Sequence[tuple[int, Collection[int]]]
) -> grain.MapDataset[tuple[Example, Collection[int]]]:
    if not images:
        raise InputError(
            f'No image of {source.name!r} is left to train on; a stage needs at least one image '
            'with a segment of its classes.'
        )
    return grain.MapDataset.source(_Subset(source, images))


def _process_batches(
    rows: grain.MapDataset, batch_size: int, process_index: int, process_count: int
) -> grain.MapDataset:
    """The part of every batch that belongs to one process."""
    if batch_size % process_count:
        raise InputError(
            f'A batch of {batch_size} images cannot be shared by {process_count} processes; '
            'batch_size must be a multiple of the number of processes.'
        )
    parts = rows.batch(batch_size // process_count, drop_remainder=True)
    return parts[process_index::process_count]


def _read_options(num_threads: int) -> grain.ReadOptions:
    # Grain's default would keep 500 batches in memory.
    return grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
