"""A profile of a few training steps, for TensorBoard's profile plugin (xprof) and Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax


class StepProfile:
    """Context manager that records a range of steps of a stage, or those that a resumed run trains.

    Args:
        stage: number of the stage.
        steps: first and last step; (0, 0) = nothing is recorded.
        folder: where the profile is written.
    """

    def __init__(self, stage: int, steps: tuple[int, int], folder: Path):
        self._stage, (self._first, self._last) = stage, steps
        self._folder, self._running = folder, False

    def __enter__(self) -> StepProfile:
        return self

    def __exit__(self, error: type | None, *_) -> None:
        self._stop()
        if self._last and error is None and not self._folder.exists():
            print(
                f'stage {self._stage} has none of the steps in '
                f'training.profile_steps={self._first},{self._last}: nothing is profiled',
                flush=True,
            )

    def before(self, step: int) -> None:
        """Starts the recording if this is the first step of the range that the run trains."""
        if self._first <= step <= self._last and not self._running:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, results: Any) -> None:
        """Writes the profile if this was the last step; waits for its `results`."""
        if self._running and step >= self._last:
            jax.block_until_ready(results)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            print(f'profile written to {self._folder}', flush=True)
