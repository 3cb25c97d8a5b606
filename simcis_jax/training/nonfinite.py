"""Reports steps with a non-finite loss or gradient, and stops training after too many."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simcis_jax.data.pipeline import TrainIterator
from simcis_jax.data.source import Source
from simcis_jax.errors import FileError, NonfiniteError, writing


def broken_terms(metrics: Mapping[str, Any]) -> list[str]:
    """Names of the metrics that are not finite."""
    return sorted(name for name, value in metrics.items() if not math.isfinite(value))


class NonfiniteSteps:
    """Collects metrics and checks those of many steps at once, so that steps need not wait.

    The train step skips the update of a non-finite step itself, so the train state stays finite.

    Args:
        stage: number of the stage.
        allowed: how many non-finite steps of the stage to skip before stopping.
        data: the training batches, to look up the batch of a step.
        source: the training images, to name those of the batch.
        folder: where to save the batch of the step that stops training.
    """

    def __init__(self, stage: int, allowed: int, data: TrainIterator, source: Source, folder: Path):
        self._stage, self._allowed, self._folder = stage, allowed, folder
        self._data, self._source = data, source
        self._recent, self._known = {}, 0

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Adds the metrics of a step without waiting for the device."""
        self._recent[step] = metrics

    def check(self) -> None:
        """Prints the steps that were skipped since the last check; call before a checkpoint.

        Raises:
            NonfiniteError: more steps of the stage were skipped than are allowed.
        """
        recent, self._recent = self._recent, {}
        if not recent or int(recent[max(recent)]['skipped_steps']) == self._known:
            return
        for step, metrics in jax.device_get(recent).items():
            terms, skipped = broken_terms(metrics), int(metrics['skipped_steps'])
            if not terms:
                continue
            message = f'stage {self._stage}, step {step}: {", ".join(terms)} not finite'
            if skipped > self._allowed:
                raise NonfiniteError(
                    f'{message}; {self._save_batch(step)} The newest checkpoint is from an earlier '
                    'step. Lower optimizer.base_learning_rate or .later_learning_rate in a new '
                    '--workdir, or skip such steps: '
                    f'--config.training.skip_nonfinite={skipped} or more.'
                )
            print(f'{message}; skipped, {skipped} of {self._allowed} allowed', flush=True)
        self._known = skipped

    def _save_batch(self, step: int) -> str:
        batch, images = self._data.at(step - 1)
        ids = [self._source[int(index)].image_id for index in images]
        path = self._folder / f'nonfinite_step_{step}_process_{jax.process_index()}.npz'
        targets = dataclasses.asdict(batch.targets)
        names = f'its batch, images {", ".join(map(str, ids))},'
        try:
            with writing(path):
                np.savez(path, image=batch.image, image_id=np.asarray(ids), **targets)
        except FileError as error:
            return f'{names} could not be saved: {error}'
        return f'{names} is saved in {path}.'
