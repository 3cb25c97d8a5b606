"""Helpers that interfere with a run and compare the results of runs."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from simcis_jax.data.pipeline import TrainIterator
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.types import Batch


def at_step(patch: pytest.MonkeyPatch, number: int, action: Callable[[Batch], Batch]) -> None:
    """Replaces the number-th training batch from now on (1 = the next) by `action(batch)`."""
    next_batch, calls = TrainIterator.__next__, []

    def hook(iterator):
        batch = next_batch(iterator)
        calls.append(1)
        return action(batch) if len(calls) == number else batch

    patch.setattr(TrainIterator, '__next__', hook)


def newest_state(workdir: Path, stage: int = 3) -> dict:
    """The whole state of the newest checkpoint, as arrays; an empty memory is left out."""
    folder = workdir / f'stage_{stage}' / 'checkpoints'
    with StageCheckpoints(folder) as checkpoints:
        newest = folder / f'{checkpoints.latest_step}'
        items = [x for x in ('params', 'memory', 'rest') if (newest / x / '_METADATA').exists()]
        return {item: checkpoints.read(item) for item in items}


def leaves(workdir: Path, stage: int = 3) -> list[np.ndarray]:
    """`newest_state` as a flat list of NumPy arrays."""
    arrays = jax.tree.leaves(newest_state(workdir, stage))
    is_key = [jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) for x in arrays]
    return [
        np.asarray(jax.random.key_data(x) if key else x)
        for x, key in zip(arrays, is_key, strict=True)
    ]


# Numbers of the log that differ from run to run.
MEASURED = {
    'steps_per_second',
    'images_per_second',
    'data_wait',
    'checkpoint_seconds',
    'evaluation_seconds',
}


def records(workdir: Path) -> list[dict[str, float]]:
    """What a run logged, without times."""
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name not in MEASURED}
        for line in lines
    ]


def assert_same(workdir: Path, other: Path, stage: int = 3) -> None:
    """Asserts that final states, results, logged losses and scores are the same bit for bit.

    So are the steps whose weights are kept as the best. `stage` is the last one.
    """
    for a, b in zip(leaves(workdir, stage), leaves(other, stage), strict=True):
        np.testing.assert_array_equal(a, b)
    assert records(workdir) == records(other)
    best = [
        sorted(str(p.relative_to(run)) for p in run.glob('stage_*/best/*'))
        for run in (workdir, other)
    ]
    assert best[0] == best[1]
    results = [(run / 'results.json').read_text() for run in (workdir, other)]
    assert results[0] == results[1]
