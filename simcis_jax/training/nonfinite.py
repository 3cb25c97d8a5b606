"""Steps whose loss or gradient is not finite: named, counted, and in the end the reason to stop."""

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
from simcis_jax.errors import NonfiniteError


def broken_terms(metrics: Mapping[str, Any]) -> list[str]:
    """Names of the metrics that are not finite."""
    return sorted(name for name, value in metrics.items() if not math.isfinite(value))


class NonfiniteSteps:
    """Looks, now and then, at the metrics of all steps since it looked last.

    The compiled step has left out the update of such a step, so its state is still good.
    """

    def __init__(self, stage: int, allowed: int, data: TrainIterator, source: Source, folder: Path):
        """Args: number of the stage, steps it may leave out, its batches, where to keep one."""
        self._stage, self._allowed, self._folder = stage, allowed, folder
        self._data, self._source = data, source
        self._recent, self._known = {}, 0

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Remembers the metrics of a step, without waiting for them."""
        self._recent[step] = metrics

    def check(self) -> None:
        """Prints which of the remembered steps were left out; then a checkpoint may be saved.

        Raises:
            NonfiniteError: there were too many, counted from the start of the stage.
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
                    f'{message}; {self._save_batch(step)} The newest checkpoint is from before. '
                    'Lower optimizer.base_learning_rate or .later_learning_rate in another '
                    '--workdir, or go on without such steps: '
                    f'--config.training.skip_nonfinite={skipped} or more.'
                )
            print(f'{message}: left out, {skipped} of {self._allowed}', flush=True)
        self._known = skipped

    def _save_batch(self, step: int) -> str:
        batch, images = self._data.at(step - 1)
        ids = [self._source[int(index)].image_id for index in images]
        path = self._folder / f'nonfinite_step_{step}_process_{jax.process_index()}.npz'
        targets = dataclasses.asdict(batch.targets)
        np.savez(path, image=batch.image, image_id=np.asarray(ids), **targets)
        return f'its batch, images {", ".join(map(str, ids))}, is in {path}.'
