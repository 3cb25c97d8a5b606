"""What a run leaves in its folder, and how the same command finds it again.

config.json                 the resolved config; another config is refused
categories.json             the classes, as COCO lists them; other classes are refused
lock                        held by the process that uses the folder
metrics.jsonl, tensorboard/ losses while training
stage_N/checkpoints/        the last two checkpoints of a stage
stage_N/replay.json         which past images it trains on again, how many queries, their bytes
stage_N/evaluation.json     its scores; the stage is finished when this exists
stage_N/predictions.png     image, ground truth, prediction
results.json, results.txt   the table after the last finished stage
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from simcis_jax.data.category_list import (
    category_entries,
    conflict,
    read_categories,
    read_json,
)
from simcis_jax.errors import FileError, InputError, reading, writing
from simcis_jax.evaluation import continual
from simcis_jax.runtime.files import write_atomically
from simcis_jax.training.metrics_log import MetricsLog
from simcis_jax.types import Categories

# What may differ when a run goes on: it changes neither the model nor its scores, or only as the
# number of devices does, in the last digits.
MAY_CHANGE = (
    'data.root',
    'data.num_workers',
    'training.microbatch_size',
    'training.log_every',
    'training.checkpoint_every',
    'training.skip_nonfinite',
    'evaluation.num_pictures',
)


@dataclasses.dataclass(frozen=True)
class StageFolder:
    """The folder of one stage."""

    root: Path
    writes: bool = True  # Of several processes, one.

    @property
    def number(self) -> int | None:
        """N of stage_N; None if the folder has another name."""
        name, _, number = self.root.name.partition('_')
        return int(number) if name == 'stage' and number.isdigit() else None

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.root / 'checkpoints'

    @property
    def picture(self) -> Path:
        """Picture of the first images."""
        return self.root / 'predictions.png'

    @property
    def newest_checkpoint(self) -> Path | None:
        """Folder of the newest checkpoint, which is called by its step; None if there is none."""
        steps = [path for path in self.checkpoints.glob('*') if path.name.isdigit()]
        return max(steps, key=lambda path: int(path.name), default=None)

    @property
    def is_finished(self) -> bool:
        """Whether it has a checkpoint and was evaluated, or another program trained it.

        Such a checkpoint has weights alone.
        """
        newest = self.newest_checkpoint
        return newest is not None and (
            self.read_report() is not None or not (newest / 'rest').exists()
        )

    def read_report(self) -> dict | None:
        """The scores, if the stage was evaluated.

        Raises:
            InputError: the file holds something else.
            FileError: it cannot be read.
        """
        path = self.root / 'evaluation.json'
        if not path.exists():
            return None
        try:
            report = read_json(path, dict)
            continual.check_report(report)
        except InputError as error:
            raise InputError(
                f'{path} is damaged ({error}); delete it and repeat the command of the run, which '
                'evaluates the stage again.'
            ) from None
        return report

    def copy_from(self, other: StageFolder) -> None:
        """Copies a finished stage of another run, its report last; does nothing the second time."""
        if self.writes and self.read_report() is None:
            shutil.copytree(
                other.root,
                self.root,
                ignore=shutil.ignore_patterns('evaluation.json'),
                dirs_exist_ok=True,
            )
            report = other.read_report()
            if report is not None:
                self.write_report(report)

    def write_replay(self, replayed: Mapping) -> None:
        """Writes what the stage replays of those before it."""
        if self.writes:
            self.root.mkdir(parents=True, exist_ok=True)
            write_atomically(self.root / 'replay.json', json.dumps(replayed, indent=2))

    def write_report(self, report: Mapping) -> None:
        """Writes the scores: from now on the stage is finished."""
        if self.writes:
            write_atomically(self.root / 'evaluation.json', json.dumps(report, indent=2))


class Workdir:
    """The folder of one run; nothing is written before `claim`, and nobody else writes after it.

    Args:
        root: of the folder.
        config: of the run.
        writes: False for all processes of a run but one: they read only.
    """

    def __init__(self, root: str | Path, config: Mapping[str, Any], *, writes: bool = True):
        self.root, self.writes = Path(root), writes
        self._config = json.loads(json.dumps(config))  # Tuples become lists, as in the file.
        self._lock = None

    def __enter__(self) -> Workdir:
        return self

    def __exit__(self, *_) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def claim(self, categories: Categories) -> None:
        """Makes the folder this config's, or finds that it is; locks it until the `with` ends.

        The classes are recorded, so that the model can be used where the data set is not.

        Args:
            categories: of the data set of the run.

        Raises:
            InputError: the folder holds a run of another config or with other classes, or files
                that are no run.
            FileError: another process uses the folder.
        """
        if not self.writes:
            return
        path = self.root / 'config.json'
        if not path.exists() and self.root.exists():
            with reading(self.root):
                others = [p.name for p in self.root.iterdir() if p.name not in ('lock', path.name)]
            if others:
                raise InputError(
                    f'{self.root} is not empty and holds no config.json of a run; choose an empty '
                    'or new --workdir.'
                )
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            self._take_lock()
        found = read_json(path, dict) if path.exists() else None
        if found is not None:
            difference = first_difference(found, self._config, may_change=MAY_CHANGE)
            if difference:
                raise InputError(
                    f'{self.root} holds a run of another config: {difference}; choose another '
                    '--workdir, or repeat that config to continue it.'
                )
        self._check_categories(categories)
        if found != self._config:
            write_atomically(path, json.dumps(self._config, indent=2))
        entries = json.dumps(category_entries(categories), indent=2)
        write_atomically(self.root / 'categories.json', entries)

    def _check_categories(self, categories: Categories) -> None:
        path = self.root / 'categories.json'
        if not path.exists():
            return
        learned, there, here = read_categories(path), f'in {path}', 'in the data set now'
        difference = conflict(learned, categories, in_listed=there, in_known=here)
        difference = difference or conflict(categories, learned, in_listed=here, in_known=there)
        if difference:
            raise InputError(
                f'{self.root} holds a run with other classes: {difference}; choose another '
                '--workdir, or restore the data set to continue it.'
            )

    def _take_lock(self) -> None:
        """The lock is the kernel's: it is gone as soon as the process is, however it ended."""
        lock = (self.root / 'lock').open('a+', encoding='utf-8')
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise FileError(
                f'{self.root} is used by another process ({lock.read()}); wait for it, stop it, or '
                'choose another --workdir.'
            ) from error
        lock.truncate(0)
        lock.write(f'process {os.getpid()} on {socket.gethostname()}')
        lock.flush()
        self._lock = lock

    def stage(self, number: int) -> StageFolder:
        """The folder of a stage (1 = base)."""
        return StageFolder(self.root / f'stage_{number}', self.writes)

    def metrics_log(
        self, stage: int, first_step: int
    ) -> contextlib.AbstractContextManager[MetricsLog | None]:
        """The log, cut back to `first_step` of `stage`; None for a process that does not write."""
        if not self.writes:
            return contextlib.nullcontext()
        return MetricsLog(self.root, stage, first_step)

    def write_results(self, results: Mapping) -> None:
        """Writes the table as JSON and as text."""
        if not self.writes:
            return
        write_atomically(self.root / 'results.json', json.dumps(results, indent=2))
        write_atomically(self.root / 'results.txt', continual.format_table(results) + '\n')


def first_difference(
    old: Any, new: Any, path: str = '', *, may_change: Collection[str] = ()
) -> str | None:
    """Where two configs differ first, in words; None if they differ in nothing else."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            here = f'{path}.{key}' if path else key
            if here in may_change:
                continue
            if key not in old or key not in new:
                return f'{here} is only in {"the new config" if key in new else "that run"}'
            found = first_difference(old[key], new[key], here, may_change=may_change)
            if found:
                return found
        return None
    return None if old == new else f'{path} is {old!r} there and {new!r} now'
