"""Time to count the results of an image on the host, for the three tasks, and their size.

    python -m benchmarks.counting

The predictions are those of a network in the middle of training: 100 queries with smooth masks.
"""

from __future__ import annotations

import time

import jax
import numpy as np

from simcis_jax.data.source import Example
from simcis_jax.evaluation.evaluator import make_tasks
from simcis_jax.evaluation.tasks import ImagePredictions
from simcis_jax.settings.keys import EvaluationSettings
from simcis_jax.types import Categories

NUM_CLASSES, NUM_QUERIES, NUM_SEGMENTS = 150, 100, 15
SIZES = ((512, 683), (1536, 2048))  # Height and width: the median of ADE20K, and a large image.
REPEATS = 10


def smooth(rng: np.random.Generator, number: int, shape: tuple[int, int]) -> np.ndarray:
    """Smooth noise [number, *shape] with deviation 1."""
    coarse = rng.normal(size=(number, 12, 16)).astype(np.float32)
    return np.asarray(jax.image.resize(coarse, (number, *shape), 'cubic'))


def example(rng: np.random.Generator, shape: tuple[int, int]) -> Example:
    """An image whose ground truth has 15 segments."""
    return Example(
        image=np.zeros((*shape, 3), np.uint8),
        segment_map=smooth(rng, NUM_SEGMENTS + 1, shape).argmax(axis=0).astype(np.int32),
        labels=rng.integers(0, NUM_CLASSES, NUM_SEGMENTS),
        crowd=np.zeros(NUM_SEGMENTS, bool),
        image_id='0',
    )


def predictions(rng: np.random.Generator, shape: tuple[int, int]) -> ImagePredictions:
    """Predictions for an image of this size."""
    logits = rng.normal(-4, 2, (NUM_QUERIES, NUM_CLASSES)).astype(np.float32)
    masks = 4 * smooth(rng, NUM_QUERIES, shape) - 4
    size = np.array(shape, np.int32)
    return ImagePredictions(logits, masks[:, ::4, ::4], masks, size, size, shape)


def main() -> None:
    """Prints a Markdown table: one row per size, one column per task with time on one core."""
    names = tuple(f'class {i}' for i in range(NUM_CLASSES))
    things = tuple(i >= 50 for i in range(NUM_CLASSES))
    categories = Categories(names, things, ((0, 0, 0),) * NUM_CLASSES)
    tasks = make_tasks(categories, EvaluationSettings(tasks=('panoptic', 'semantic', 'instance')))
    seen = np.ones(NUM_CLASSES, bool)
    print(f'| height x width | {" | ".join(tasks)} | all | copied |\n|{"---|" * (len(tasks) + 3)}')
    for shape in SIZES:
        rng = np.random.default_rng(0)
        truth, found = example(rng, shape), predictions(rng, shape)
        milliseconds, megabytes = [], 0.0
        for task in tasks.values():
            result = task.fetch(jax.jit(task.infer)(found, seen))
            megabytes += sum(array.nbytes for array in jax.tree.leaves(result)) / 1e6
            times = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                task.count(result, truth, seen)
                times.append(1000 * (time.perf_counter() - start))
            milliseconds.append(min(times))
        cells = ' | '.join(f'{x:.1f} ms' for x in [*milliseconds, sum(milliseconds)])
        print(f'| {shape[0]} x {shape[1]} | {cells} | {megabytes:.1f} MB |')


if __name__ == '__main__':
    main()
