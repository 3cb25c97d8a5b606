"""The work directory of a run, from which the same command resumes it.

config.json                 the resolved config; a run with another config is rejected
categories.json             the classes in COCO format; one with other classes is rejected
lock                        locked by the process that uses the folder; or lease.json
replay_sizes.json           sizes of images that protocol.replay_megabytes may replay, in bytes
metrics.jsonl, tensorboard/ training losses
stage_N/checkpoints/        the last two checkpoints of a stage
stage_N/best/               the weights with the best score inside the stage, if they are kept
stage_N/counts/             the counts of an evaluation that is not finished
stage_N/replay.json         replayed images, number of stored queries, and their sizes in bytes
stage_N/evaluation.json     the scores; a stage with this file is finished
stage_N/predictions.png     image, ground truth, prediction
results.json, results.txt   the results table up to the last finished stage
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from simcis_jax.data.category_list import category_entries, conflict, read_categories
from simcis_jax.errors import FileError, InputError, reading, writing
from simcis_jax.evaluation.results_table import format_table
from simcis_jax.runtime import lease
from simcis_jax.runtime.files import PART, write_atomically
from simcis_jax.runtime.json_files import read_json
from simcis_jax.settings.validated import with_defaults
from simcis_jax.training.metrics_log import MetricsLog, read_metrics
from simcis_jax.training.stage_folder import StageFolder
from simcis_jax.types import Categories

# What a process that is killed before it has written the config may leave.
BEFORE_CONFIG = re.compile(
    rf'lock|{re.escape(lease.NAME)}|config\.json((\.\d+)?{re.escape(PART)})?'
)
# Config keys and groups that may change when a run is resumed: they do not change the model beyond
# float rounding, unless a method compares the images of a microbatch. docs/devices.md lists them.
MAY_CHANGE = (
    'data.root',
    'data.num_workers',
    'data.num_threads',
    'training.microbatch_size',
    'training.log_every',
    'training.checkpoint_every',
    'training.skip_nonfinite',
    'training.keep_best',
    'training.profile_steps',
    'evaluation',  # The table names the stages that were scored with other settings.
)


class Workdir:
    """The work directory of one run; `claim` locks it, and nothing is written before.

    Args:
        root: path of the folder.
        config: the config of the run.
        writes: True only for the main process; the others only read.

    Raises:
        InputError: the path is that of a file, or leads through one.
    """

    def __init__(self, root: str | Path, config: Mapping[str, Any], *, writes: bool = True):
        self.root, self.writes = Path(root), writes
        self._config = json.loads(json.dumps(config))  # Tuples become lists, as in the file.
        self._locks = contextlib.ExitStack()
        nearest = next(path for path in (self.root, *self.root.parents) if path.exists())
        if not nearest.is_dir():
            raise InputError(
                f'--workdir={root} must be a folder, but {nearest} is a file; choose another path.'
            )

    def __enter__(self) -> Workdir:
        return self

    def __exit__(self, *_) -> None:
        self._locks.close()

    def claim(self, categories: Categories) -> None:
        """Locks the folder until the `with` block ends; records config and classes in it.

        The recorded classes let the model be used without its data set.

        Args:
            categories: the classes of the run's data set.

        Raises:
            InputError: the folder holds a run with another config or other classes, or files that
                do not belong to a run.
            FileError: another process uses the folder.
        """
        if not self.writes:
            return
        path = self.root / 'config.json'
        if not path.exists() and self.root.exists():
            with reading(self.root):
                others = [
                    p.name for p in self.root.iterdir() if not BEFORE_CONFIG.fullmatch(p.name)
                ]
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
            difference = config_difference(
                *map(with_defaults, (found, self._config)), may_change=MAY_CHANGE
            )
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
        """Takes a lock, or a lease where the file system has none, as on some mounted stores."""
        lock = self._locks.enter_context((self.root / 'lock').open('a+', encoding='utf-8'))
        try:
            is_locked = self._locks.enter_context(lease.locked(lock, self.root))
        except BlockingIOError as error:
            lock.seek(0)
            raise FileError(
                f'{self.root} is used by another process ({lock.read()}); wait for it, stop it, or '
                'choose another --workdir.'
            ) from error
        if is_locked:
            lock.truncate(0)
            lock.write(f'process {os.getpid()} on {socket.gethostname()}')
            lock.flush()

    @property
    def replay_sizes(self) -> Path:
        """The file with the sizes of images that stages may replay."""
        return self.root / 'replay_sizes.json'

    def stage(self, number: int) -> StageFolder:
        """The folder of a stage (1 = base)."""
        return StageFolder(self.root / f'stage_{number}', self.writes)

    def metrics_log(
        self, stage: int, first_step: int
    ) -> contextlib.AbstractContextManager[MetricsLog | None]:
        """The log, truncated to `first_step` of `stage`; None for a process that does not write."""
        if not self.writes:
            return contextlib.nullcontext()
        return MetricsLog(self.root, stage, first_step)

    def records(self, stage: int, last_step: int) -> list[dict]:
        """What the log holds about the first steps of a stage."""
        records = read_metrics(self.root / 'metrics.jsonl')
        return [r for r in records if r['stage'] == stage and r['step'] <= last_step]

    def write_results(self, results: Mapping) -> None:
        """Writes the results table as JSON and as text."""
        if not self.writes:
            return
        write_atomically(self.root / 'results.json', json.dumps(results, indent=2))
        write_atomically(self.root / 'results.txt', format_table(results) + '\n')


def recorded_config(root: Path) -> dict[str, Any] | None:
    """The config of the run in a folder, see `with_defaults`; None if there is none."""
    path = root / 'config.json'
    return with_defaults(read_json(path, dict)) if path.exists() else None


def config_difference(
    old: Any, new: Any, path: str = '', *, may_change: Collection[str] = ()
) -> str | None:
    """The first difference between two configs, in words; None if only `may_change` keys differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            here = f'{path}.{key}' if path else key
            if here in may_change:
                continue
            if key not in old or key not in new:
                return f'{here} is only in {"the new config" if key in new else "that run"}'
            found = config_difference(old[key], new[key], here, may_change=may_change)
            if found:
                return found
        return None
    return None if old == new else f'{path} is {old!r} there and {new!r} now'
