"""From a source to the batches of a step: grain for training, a thread pool for evaluation."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any

import grain
import numpy as np
from absl import flags

from simcis_jax import types
from simcis_jax.data import augment
from simcis_jax.data.source import Example, Source


@dataclasses.dataclass(frozen=True)
class Augmentation(grain.transforms.RandomMap):
    """Example -> `types.Batch` without the batch axis."""

    keep_classes: Collection[int]  # The classes that become targets.
    size: int  # Side of the crop in pixels.
    max_segments: int  # T, target slots of an image.
    scale_range: tuple[float, float] = (0.5, 2.0)  # Shorter side over `size`.
    scale_steps: int = 16  # Evenly spaced scales to choose from.
    flip: bool = True  # Mirror half of the images.
    color: bool = True  # SSD photometric distortion.
    keep_empty: bool = False  # Published: segments that cropping emptied stay targets.

    def random_map(self, element: Example, rng: np.random.Generator) -> types.Batch:
        """Augments one example."""
        example = augment.augment(
            element,
            rng,
            size=self.size,
            scale_range=self.scale_range,
            scale_steps=self.scale_steps,
            mirror=self.flip,
            color=self.color,
        )
        targets = augment.to_targets(
            example,
            self.keep_classes,
            max_segments=self.max_segments,
            keep_empty=self.keep_empty,
        )
        return types.Batch(image=example.image, targets=targets)


class TrainIterator(grain.DatasetIterator[types.Batch]):
    """Batches from a position on; the state is that position, whatever prepares the batches.

    Grain's own iterators resume wrongly, without a word, when the number of workers has changed;
    here the batches are random access, so a restored iterator just starts at another one.
    """

    def __init__(
        self, batches: grain.MapDataset[types.Batch], *, num_threads: int, num_workers: int
    ):
        super().__init__()
        self._batches = batches
        self._num_threads = num_threads
        self._num_workers = num_workers
        self._position = 0
        self._running = None

    def __next__(self) -> types.Batch:
        if self._running is None:
            self._running = iter(self._prefetched(self._batches[self._position :]))
        batch = next(self._running)
        self._position += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """The position, ready for JSON."""
        return {'position': self._position}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues at a position that `get_state` gave."""
        self.close()
        self._position = state['position']

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
        return dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=self._num_workers, per_worker_buffer_size=2)
        )


@dataclasses.dataclass(frozen=True)
class EvaluationBatch:
    """Images of one padded shape; rows past the last real one are zero."""

    image: np.ndarray  # [B, Hp, Wp, 3] uint8, RGB, padded bottom and right with 0.
    size: np.ndarray  # [B, 2] int32, valid rows and columns of `image`; 1, 1 where not real.
    original_size: np.ndarray  # [B, 2] int32, rows and columns of the ground truth, likewise.
    real: np.ndarray  # [B] bool; real rows come first.
    examples: list[Example]  # Ground truth of the real rows, at original size.


@dataclasses.dataclass(frozen=True)
class _Subset:
    """The images of a source at the given indices, as grain reads them."""

    source: Source
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.source[int(self.indices[index])]


def train_iterator(
    source: Source,
    *,
    indices: Sequence[int] | np.ndarray,
    batch_size: int,
    seed: int,
    num_threads: int = 4,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    **augmentation: Any,
) -> TrainIterator:
    """Endless batches, shuffled anew each epoch; a function of the arguments and the position.

    `get_state` and `set_state` are exact, also through `grain.checkpoint` in Orbax.

    Args:
        source: the data set.
        indices: the images to train on; fewer than `batch_size` are fine.
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
        ValueError: no images, or a batch that the processes cannot share equally.
    """
    rows = (
        _rows(source, indices)
        .seed(seed)
        .shuffle()
        .repeat(None)
        .random_map(Augmentation(**augmentation))
    )
    batches = _process_batches(rows, batch_size, process_index, process_count)
    return TrainIterator(batches, num_threads=num_threads, num_workers=num_workers)


def epoch_batches(
    source: Source,
    *,
    indices: Sequence[int] | np.ndarray,
    batch_size: int,
    seed: int,
    num_threads: int = 4,
    process_index: int = 0,
    process_count: int = 1,
    **augmentation: Any,
) -> Iterator[tuple[types.Batch, np.ndarray]]:
    """One pass over `indices` in order, with the training augmentation.

    Yields batches as `train_iterator` does, each with `real` [B] bool. The last batch is completed
    with images from the start, whose rows are not real: leave them out of any count.
    """
    num_rows = -(-len(indices) // batch_size) * batch_size
    padded = np.resize(np.asarray(indices), num_rows)
    rows = _rows(source, padded).seed(seed).random_map(Augmentation(**augmentation))
    batches = _process_batches(rows, batch_size, process_index, process_count)
    real = (np.arange(num_rows) < len(indices)).reshape(
        -1, process_count, batch_size // process_count
    )
    return zip(
        batches.to_iter_dataset(_read_options(num_threads)), real[:, process_index], strict=True
    )


def evaluation_batches(
    source: Source,
    indices: Sequence[int] | np.ndarray,
    *,
    batch_size: int,
    short_side: int,
    max_side: int,
    multiple: int = 32,
    num_threads: int = 4,
) -> Iterator[EvaluationBatch]:
    """Every image once, resized and grouped with others of the same padded shape.

    Args:
        source: the data set.
        indices: the images.
        batch_size: rows of a batch.
        short_side: the shorter side of an image after resizing, in pixels.
        max_side: limit of the longer side, which wins.
        multiple: heights and widths are padded to multiples of this.
        num_threads: threads that decode ahead.
    """

    def load(index: int) -> tuple[Example, np.ndarray]:
        example = source[int(index)]
        shape = augment.resized_shape(
            *example.image.shape[:2], short_side=short_side, max_side=max_side
        )
        return example, augment.resize_image(example.image, *shape)

    groups = collections.defaultdict(list)
    for example, image in map_ahead(load, indices, num_threads):
        padded = tuple(-(-side // multiple) * multiple for side in image.shape[:2])
        groups[padded].append((example, image))
        if len(groups[padded]) == batch_size:
            yield _evaluation_batch(groups.pop(padded), padded, batch_size)
    for padded, members in groups.items():
        yield _evaluation_batch(members, padded, batch_size)


def map_ahead(
    function: Callable[[Any], Any], items: Iterable[Any], num_threads: int
) -> Iterator[Any]:
    """Results of `function` in order, with a few computed ahead in threads."""
    with futures.ThreadPoolExecutor(num_threads) as pool:
        items = iter(items)
        pending = collections.deque(
            pool.submit(function, item) for item in itertools.islice(items, 2 * num_threads)
        )
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
            yield result


def _rows(source: Source, indices: Sequence[int] | np.ndarray) -> grain.MapDataset[Example]:
    if len(indices) == 0:
        raise ValueError(
            f'No image of {source.name!r} is left to train on; a stage needs at least one image '
            'with a segment of its classes.'
        )
    return grain.MapDataset.source(_Subset(source, np.asarray(indices)))


def _process_batches(
    rows: grain.MapDataset[types.Batch], batch_size: int, process_index: int, process_count: int
) -> grain.MapDataset[types.Batch]:
    """The batches of one process: of every `process_count` consecutive parts, its own."""
    if batch_size % process_count:
        raise ValueError(
            f'A batch of {batch_size} images cannot be shared by {process_count} processes; '
            'batch_size must be a multiple of their number.'
        )
    parts = rows.batch(batch_size // process_count, drop_remainder=True)
    return parts[process_index::process_count]


def _read_options(num_threads: int) -> grain.ReadOptions:
    # Grain's default would hold 500 batches in memory.
    return grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)


def _evaluation_batch(
    members: list[tuple[Example, np.ndarray]], padded: tuple[int, int], batch_size: int
) -> EvaluationBatch:
    image = np.zeros((batch_size, *padded, 3), np.uint8)
    size = np.ones((batch_size, 2), np.int32)
    original_size = np.ones((batch_size, 2), np.int32)
    for row, (example, resized) in enumerate(members):
        size[row], original_size[row] = resized.shape[:2], example.image.shape[:2]
        image[row, : size[row, 0], : size[row, 1]] = resized
    return EvaluationBatch(
        image=image,
        size=size,
        original_size=original_size,
        real=np.arange(batch_size) < len(members),
        examples=[example for example, _ in members],
    )
