"""Evaluation of a model on the classes seen so far: predictions, counts and some pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from simcis_jax.data.evaluation_batches import (
    EvaluationBatch,
    PlannedBatch,
    describe,
    load_batches,
    plan_batches,
    share_of,
)
from simcis_jax.data.part import spread
from simcis_jax.data.source import Example, Source, images_with
from simcis_jax.evaluation import pictures, stage_report
from simcis_jax.evaluation.counts_log import CountsLog
from simcis_jax.evaluation.inference import BatchPredictor
from simcis_jax.evaluation.tasks import (
    InstanceTask,
    PanopticTask,
    SemanticTask,
    Task,
)
from simcis_jax.methods.base import Method
from simcis_jax.runtime import parallel
from simcis_jax.runtime.compilation import shared
from simcis_jax.runtime.progress import Progress
from simcis_jax.runtime.threads import map_ahead, one_ahead
from simcis_jax.settings.keys import EvaluationSettings
from simcis_jax.types import Categories


def make_tasks(categories: Categories, settings: EvaluationSettings) -> dict[str, Task]:
    """The tasks that the settings name, by name."""
    tasks = {
        'panoptic': PanopticTask(
            categories, settings.object_mask_threshold, settings.overlap_threshold
        ),
        'semantic': SemanticTask(
            categories,
            settings.semantic_threshold,
            settings.overlap_threshold,
            settings.semantic_resize,
            settings.semantic_rule,
        ),
        'instance': InstanceTask(categories, settings.num_instances),
    }
    return {name: tasks[name] for name in settings.tasks}


class Evaluator:
    """Evaluates models after each stage of a run, with functions that are compiled once.

    Every process evaluates its share of the images on its own devices. Then the counts of all
    processes are summed in each, so that each has the results of a single process.

    Args:
        model: the network.
        categories: its classes.
        settings: sizes, thresholds and tasks.
        method: the continual method; None = fine-tuning.
        mask_unseen: predict seen classes only.
        mesh: devices to use; None = all of this process.

    Attributes:
        seconds_per_image: of the last evaluation, on all processes together and without the first
            image, which waits for the compilation; None before any evaluation of two images.
    """

    def __init__(
        self,
        model: nn.Module,
        categories: Categories,
        settings: EvaluationSettings,
        *,
        method: Method | None = None,
        mask_unseen: bool = True,
        mesh: Mesh | None = None,
    ):
        self.categories, self.settings = categories, settings
        self.mask_unseen, self.seconds_per_image = mask_unseen, None
        self.mesh = parallel.make_local_mesh() if mesh is None else mesh
        self.tasks = make_tasks(categories, settings)
        self.predict = shared(
            BatchPredictor,
            model,
            self.mesh,
            tuple(self.tasks.values()),
            method or Method(),
            settings.duplicate_overlap,
        )
        # Rows of a batch of one process: as many on each device.
        num_devices = jax.process_count() * self.mesh.size
        self.num_rows = -(-settings.batch_size // num_devices) * self.mesh.size

    def evaluate(
        self,
        params: Any,
        source: Source,
        groups: Mapping[str, Sequence[int]],
        *,
        num_images: int = 0,
        title: str = 'evaluation',
        counts_folder: Path | None = None,
    ) -> tuple[dict, np.ndarray]:
        """Evaluates the images that show a seen class, and draws some of them.

        Args:
            params: of the model; arrays that span several processes must be replicated.
            source: images and ground truth.
            groups: of `class_groups`; those in `all` are the seen classes.
            num_images: evaluates this many images at most, spread over the data set; 0 = all.
            title: of the progress line.
            counts_folder: keeps the counts of each image there, so that an evaluation that was
                interrupted resumes when it is started again; None = keeps none.

        Returns:
            The merged reports of the tasks, and a picture [H, W, 3] uint8 with one row per image:
            the image, its ground truth, and the result of each task.
        """
        seen = np.isin(np.arange(len(self.categories)), groups['all'])
        indices = images_with(source, groups['all'])
        indices = spread(indices, num_images or len(indices))
        shown = set(spread(indices, self.settings.num_pictures).tolist())
        plan = self._plan(source, indices)
        process, num_processes = jax.process_index(), jax.process_count()
        if process == 0:
            print(f'{title}: {describe(plan)}', flush=True)
        plan = share_of(plan, process, num_processes)
        params = parallel.local_replicas(self.mesh, params)
        order = [index for batch in plan for index in batch.indices]
        log = CountsLog(
            tuple(self.tasks.values()),
            counts_folder and counts_folder / f'process_{process}',
            self._evaluated(params, order, seen, num_processes) if counts_folder else {},
        )
        counted = {order[position] for position in log.found}
        if counted and process == 0:
            print(f'{title}: going on after {len(counted)} images', flush=True)
        progress = Progress(title, len(order), 'images', done=len(counted))

        def count(image: tuple[int, Example, tuple]) -> tuple[int, list | None, tuple | None]:
            index, example, results = image
            row = self._picture_row(example, results, seen) if index in shown else None
            if index in counted:
                return index, None, row
            by_task = zip(self.tasks.values(), results, strict=True)
            return index, [task.count(result, example, seen) for task, result in by_task], row

        # An image that is counted already is predicted again only for the pictures.
        plan = [b for b in plan if not counted >= {*b.indices} or shown & {*b.indices}]
        predictable, rows = jnp.asarray(seen) if self.mask_unseen else None, {}
        times = []  # When each image was counted.
        with (
            contextlib.closing(log),
            self.predict.compiling_ahead(params, predictable, plan, self.num_rows),
            contextlib.closing(load_batches(source, plan, batch_size=self.num_rows)) as batches,
            contextlib.closing(
                map_ahead(count, self._images(self._predict_ahead(params, predictable, batches)))
            ) as images,
        ):
            for index, counts, row in images:
                times.append(time.monotonic())
                if row is not None:
                    rows[index] = row
                if counts is not None:
                    log.add(counts)
                    if process == 0:
                        progress.advance()

        shares = parallel.gather_objects((log.totals, rows))
        reports = []
        for i, task in enumerate(self.tasks.values()):
            total = functools.reduce(operator.add, (counts[i] for counts, _ in shares))
            reports.append(task.report(total, groups))
        rows = functools.reduce(operator.or_, (rows for _, rows in shares))
        if len(times) > 1:  # The first image waited for a program to be compiled.
            own = (time.monotonic() - times[0]) / (len(times) - 1)
            self.seconds_per_image = own * len(order) / len(indices)
        return stage_report.merge_reports(reports), self._picture(rows)

    def _plan(self, source: Source, indices: np.ndarray) -> list[PlannedBatch]:
        """The batches of all processes."""
        return plan_batches(
            [source.size_of(index) for index in indices.tolist()],
            indices,
            batch_size=self.num_rows,
            short_side=self.settings.short_side,
            max_side=self.settings.max_side,
            padding=self.settings.padding,
        )

    def _evaluated(
        self, params: Any, order: Sequence[int], seen: np.ndarray, num_processes: int
    ) -> dict[str, Any]:
        """All that decides the counts of these images, and their order."""
        checksum = 0
        for leaf in jax.tree.leaves(jax.device_get(params)):
            checksum = zlib.crc32(np.ascontiguousarray(leaf), checksum)
        return {
            'params': checksum,
            'images': list(order),
            'seen': np.flatnonzero(seen).tolist(),
            'mask_unseen': self.mask_unseen,
            'num_processes': num_processes,
            'settings': dataclasses.asdict(self.settings),
        }

    def _predict_ahead(
        self, params: Any, seen: Array | None, batches: Iterable[EvaluationBatch]
    ) -> Iterator[tuple[EvaluationBatch, Any]]:
        """Yields batches with their results; the devices compute the next one meanwhile."""
        return one_ahead(lambda batch: self.predict(params, seen, batch), batches)

    def _images(
        self, predicted: Iterable[tuple[EvaluationBatch, Any]]
    ) -> Iterator[tuple[int, Example, tuple]]:
        """Yields the index, ground truth and results of every image."""
        for batch, output in predicted:
            by_task = zip(self.tasks.values(), output, strict=True)
            results = tuple(task.fetch(result) for task, result in by_task)
            for row, (index, example) in enumerate(zip(batch.indices, batch.examples, strict=True)):
                yield index, example, jax.tree.map(lambda x, row=row: x[row], results)

    def _picture_row(
        self, example: Example, result: tuple, seen: np.ndarray
    ) -> tuple[list[np.ndarray], set[int]]:
        """Pictures of the image, its ground truth and every result, and the labels they show."""
        shape = example.segment_map.shape
        known = np.where(seen[example.labels], example.labels, -1)
        layers = [(np.zeros(shape, np.int32), np.zeros(0, int)), (example.segment_map, known)]
        layers += [task.segments(result[i], shape) for i, task in enumerate(self.tasks.values())]
        cells = [
            pictures.overlay(example.image, segment_map, labels, self.categories)
            for segment_map, labels in layers
        ]
        return cells, {int(label) for _, labels in layers for label in labels}

    def _picture(self, rows: Mapping[int, tuple[list[np.ndarray], set[int]]]) -> np.ndarray:
        names = ['prediction'] if len(self.tasks) == 1 else self.tasks
        labels = sorted(set().union(*(labels for _, labels in rows.values())))
        return pictures.grid(
            [cells for _, (cells, _) in sorted(rows.items())],
            titles=('image', 'ground truth', *names),
            legend=pictures.legend(labels, self.categories),
        )
