"""Evaluation of a model on the classes seen so far: predictions, counts and some pictures."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from simcis_jax.data.evaluation_batches import (
    EvaluationBatch,
    describe,
    load_batches,
    plan_batches,
)
from simcis_jax.data.source import Example, Source, images_with
from simcis_jax.evaluation import continual, pictures
from simcis_jax.evaluation.postprocess import resized_masks
from simcis_jax.evaluation.tasks import (
    ImagePredictions,
    InstanceTask,
    PanopticTask,
    SemanticTask,
    Task,
)
from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.runtime import parallel
from simcis_jax.runtime.compilation import shared
from simcis_jax.runtime.progress import Progress
from simcis_jax.runtime.threads import map_ahead, one_ahead
from simcis_jax.settings import EvaluationSettings
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
        ),
        'instance': InstanceTask(categories, settings.num_instances),
    }
    return {name: tasks[name] for name in settings.tasks}


def make_network(model: Mask2Former, mesh: Mesh) -> Callable[..., tuple[Array, Array]]:
    """Compiles `network(params, seen, image, size)`: class and mask logits of the last layer."""

    def network(params, seen, image, size):
        predictions = model.apply({'params': params}, image, seen, size=size)
        return predictions.class_logits[-1], predictions.mask_logits(-1)

    everywhere, split = parallel.REPLICATED, parallel.SPLIT
    return parallel.map_over_devices(
        network, mesh, in_specs=(everywhere, everywhere, split, split), out_specs=split
    )


def make_predictor(
    model: Mask2Former, mesh: Mesh, tasks: Sequence[Task]
) -> Callable[[Any, Array | None, EvaluationBatch], tuple]:
    """Compiles `predict(params, seen, batch)`: one result per task, as arrays [B, *canvas, ...].

    The network is compiled once per padded shape. Post-processing, which compiles much faster, is
    compiled once per padded shape and canvas. The batch is split over the mesh. Only classes `seen`
    [C] bool are predicted; None = all.
    """
    everywhere, split = parallel.REPLICATED, parallel.SPLIT
    network = shared(make_network, model, mesh)

    def infer(padded, canvas, seen, *images):
        def one(class_logits, coarse_masks, size, original_size):
            masks = resized_masks(
                coarse_masks,
                padded_size=padded,
                size=size,
                original_size=original_size,
                output_shape=canvas,
            )
            predictions = ImagePredictions(
                class_logits, coarse_masks, masks, size, original_size, padded
            )
            return tuple(task.infer(predictions, seen) for task in tasks)

        return jax.lax.map(lambda image: one(*image), images)  # One at a time: masks are large.

    @functools.cache
    def inference(padded, canvas):
        return parallel.map_over_devices(
            functools.partial(infer, padded, canvas),
            mesh,
            in_specs=(everywhere, split, split, split, split),
            out_specs=split,
        )

    def predict(params: Any, seen: Array | None, batch: EvaluationBatch) -> tuple:
        arrays = (batch.image, batch.size, batch.original_size)
        image, size, original_size = parallel.put_batch(mesh, arrays)
        logits = network(params, seen, image, size)
        return inference(image.shape[1:3], batch.canvas)(seen, *logits, size, original_size)

    return predict


class Evaluator:
    """Evaluates models after each stage of a run, with functions that are compiled once.

    Every process evaluates its share of the images on its own devices. Then the counts of all
    processes are summed in each, so that each has the results of a single process.

    Args:
        model: the network.
        categories: its classes.
        settings: sizes, thresholds and tasks.
        mask_unseen: predict seen classes only.
        mesh: devices to use; None = all of this process.
    """

    def __init__(
        self,
        model: Mask2Former,
        categories: Categories,
        settings: EvaluationSettings,
        *,
        mask_unseen: bool = True,
        mesh: Mesh | None = None,
    ):
        self.categories, self.settings = categories, settings
        self.mask_unseen = mask_unseen
        self.mesh = parallel.make_local_mesh() if mesh is None else mesh
        self.tasks = make_tasks(categories, settings)
        self.predict = make_predictor(model, self.mesh, tuple(self.tasks.values()))
        # Rows of a batch of one process: as many on each device.
        num_devices = jax.process_count() * self.mesh.size
        self.num_rows = -(-settings.batch_size // num_devices) * self.mesh.size

    def evaluate(
        self,
        params: Any,
        source: Source,
        groups: Mapping[str, Sequence[int]],
        *,
        title: str = 'evaluation',
    ) -> tuple[dict, np.ndarray]:
        """Evaluates the images that show a seen class, and draws some of them.

        Args:
            params: of the model; arrays that span several processes must be replicated.
            source: images and ground truth.
            groups: of `continual.class_groups`; those in `all` are the seen classes.
            title: of the progress line.

        Returns:
            The merged reports of the tasks, and a picture [H, W, 3] uint8 with one row per image:
            the image, its ground truth, and the result of each task.
        """
        seen = np.isin(np.arange(len(self.categories)), groups['all'])
        indices = images_with(source, groups['all'])
        plan = plan_batches(
            [source.size_of(index) for index in indices.tolist()],
            indices,
            batch_size=self.num_rows,
            short_side=self.settings.short_side,
            max_side=self.settings.max_side,
            padding=self.settings.padding,
        )
        process = jax.process_index()
        if process == 0:
            print(f'{title}: {describe(plan)}', flush=True)
        plan = plan[process :: jax.process_count()]
        progress = Progress(title, sum(len(batch.indices) for batch in plan), 'images')

        # Spread over the data set: consecutive images are often frames of one video.
        every = max(1, len(indices) // max(1, self.settings.num_pictures))
        shown = set(indices[every - 1 :: every][: self.settings.num_pictures].tolist())
        batches = load_batches(source, plan, batch_size=self.num_rows)
        images = self._images(self._predict_ahead(params, seen, batches))

        def count(image: tuple[int, Example, tuple]) -> tuple[int, list, tuple | None]:
            index, example, results = image
            counts = [
                task.count(result, example, seen)
                for task, result in zip(self.tasks.values(), results, strict=True)
            ]
            row = self._picture_row(example, results, seen) if index in shown else None
            return index, counts, row

        totals, rows = [task.zeros() for task in self.tasks.values()], {}
        # In the order of the images, because sums of IoU depend on it.
        for index, counts, row in map_ahead(count, images):
            for i, of_task in enumerate(counts):
                totals[i] += of_task
            if row is not None:
                rows[index] = row
            if process == 0:
                progress.advance()

        shares = parallel.gather_objects((totals, rows))
        reports = []
        for i, task in enumerate(self.tasks.values()):
            total = functools.reduce(operator.add, (counts[i] for counts, _ in shares))
            reports.append(task.report(total, groups))
        rows = functools.reduce(operator.or_, (rows for _, rows in shares))
        return continual.merge_reports(reports), self._picture(rows)

    def _predict_ahead(
        self, params: Any, seen: np.ndarray, batches: Iterable[EvaluationBatch]
    ) -> Iterator[tuple[EvaluationBatch, Any]]:
        """Yields batches with their results; the devices compute the next one meanwhile."""
        params = parallel.local_replicas(self.mesh, params)
        seen = jnp.asarray(seen) if self.mask_unseen else None
        return one_ahead(lambda batch: self.predict(params, seen, batch), batches)

    def _images(
        self, predicted: Iterable[tuple[EvaluationBatch, Any]]
    ) -> Iterator[tuple[int, Example, tuple]]:
        """Yields the index, ground truth and results of every image."""
        for batch, output in predicted:
            results = jax.device_get(output)
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
