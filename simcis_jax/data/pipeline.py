"""From a source to the batches of a step, with grain."""

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
    """An example and its labelled classes -> `types.Batch` without the batch axis."""

    size: int  # Side of the crop in pixels.
    max_segments: int  # T, target slots of an image.
    scale_range: tuple[float, float] = (0.5, 2.0)  # Shorter side over `size`.
    scale_steps: int = 16  # Evenly spaced scales to choose from.
    flip: bool = True  # Mirror half of the images.
    color: bool = True  # SSD photometric distortion.
    keep_empty: bool = False  # Published: segments that cropping emptied stay targets.

    def random_map(
        self, element: tuple[Example, Collection[int]], rng: np.random.Generator
    ) -> types.Batch:
        """Augments one example; segments of its labelled classes become targets."""
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
    """Batches from a position on, whatever prepares them.

    Grain's own iterators resume wrongly, without a word, when the number of workers has changed;
    here the batches are random access, so to resume is just to start at another position.
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
        self.position = 0  # Batches given so far.

    def __next__(self) -> types.Batch:
        if self._running is None:
            self._running = iter(self._prefetched(self._batches[self.position :]))
        batch = next(self._running)
        self.position += 1
        return batch

    def seek(self, position: int) -> None:
        """Continues at another position."""
        self.close()
        self.position = position

    def at(self, position: int) -> tuple[types.Batch, np.ndarray]:
        """The batch at a position, and the indices in the source of its images."""
        return self._batches[position], self._images[position]

    def close(self) -> None:
        """Stops threads and workers; the next batch starts them again."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def _prefetched(self, batches: grain.MapDataset[types.Batch]) -> grain.IterDataset[types.Batch]:
        dataset = batches.to_iter_dataset(_read_options(self._num_threads))
        if self._num_workers == 0:
            return dataset
        # Grain hands absl flags to its workers; a notebook, unlike `app.run`, never parsed any.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(
            num_workers=self._num_workers, per_worker_buffer_size=2
        )
        return dataset.mp_prefetch(options, worker_init_fn=_follow_parent)


def _follow_parent(*_: int) -> None:
    """Makes a worker end with its parent, and not before: a signal often goes to all of a job."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@dataclasses.dataclass(frozen=True)
class _Subset:
    """Some images of a source with their labelled classes, as grain reads them."""

    source: Source
    images: Sequence[tuple[int, Collection[int]]]  # Index and labelled classes of each.

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
    """Endless batches, shuffled anew each epoch; a function of the arguments and the position.

    Args:
        source: the data set.
        images: the images to train on, by their index, and the classes whose segments are targets
            in each; fewer than `batch_size` are fine.
        batch_size: images of a batch over all processes.
        seed: fixes order and augmentation, 0 .. 2**32 - 1.
        num_threads: threads that prepare batches ahead, in each worker.
        num_workers: worker processes; 0 = threads of this process alone.
        process_index: which rows this process yields: the process_index-th of `process_count`
            equal parts of every batch. The batch over all processes does not depend on their count.
        process_count: number of processes.
        **augmentation: the fields of `Augmentation`, what happens to each image.

    Returns:
        An iterator of `types.Batch` with numpy leaves [batch_size / process_count, ...].

    Raises:
        InputError: no images, or a batch that the processes cannot share equally.
    """
    rows = (
        _rows(source, list(images.items()))
        .seed(seed)
        .shuffle()
        .repeat(None)
        .random_map(Augmentation(**augmentation))
    )
    # The same seed and operations shuffle the bare indices in the same way.
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
    """One pass over `images` in order, with the training augmentation.

    Yields batches as `train_iterator` does, each with `real` [B] bool. The last batch is completed
    with images from the start, whose rows are not real: leave them out of any count.
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
    """The batches of one process: of every `process_count` consecutive parts, its own."""
    if batch_size % process_count:
        raise InputError(
            f'A batch of {batch_size} images cannot be shared by {process_count} processes; '
            'batch_size must be a multiple of their number.'
        )
    parts = rows.batch(batch_size // process_count, drop_remainder=True)
    return parts[process_index::process_count]


def _read_options(num_threads: int) -> grain.ReadOptions:
    # Grain's default would hold 500 batches in memory.
    return grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
