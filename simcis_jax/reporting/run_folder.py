"""Reads everything that the report needs from the folder of a run, finished or not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simcis_jax.data.category_list import read_categories
from simcis_jax.errors import InputError
from simcis_jax.methods import METHODS
from simcis_jax.methods.base import Method
from simcis_jax.runtime.json_files import read_json
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.find_stage import stage_folders
from simcis_jax.training.metrics_log import read_metrics
from simcis_jax.training.stage_folder import StageFolder
from simcis_jax.types import MemoryTable


@dataclasses.dataclass(frozen=True)
class Memory:
    """The method's memory in a checkpoint."""

    stage: int
    step: int
    table: MemoryTable


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The content of a run folder."""

    name: str
    config: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]  # Lines of metrics.jsonl, in order.
    reports: Sequence[Mapping[str, Any]]  # Evaluations of the finished stages, in order.
    pictures: Mapping[int, Path]  # Stage -> file, for the finished stages.
    memory: Memory | None


def read_run(workdir: str | Path) -> RunFolder:
    """Reads the folder of a run of `simcis_jax.main`.

    Raises:
        InputError: the folder is not that of a run.
    """
    root = Path(workdir)
    config_path = root / 'config.json'
    if not config_path.is_file():
        raise InputError(
            f'{root} has no config.json; give the --workdir of a run of simcis_jax.main.'
        )
    config = read_json(config_path, dict)
    if not all(isinstance(group, dict) for group in config.values()):
        raise InputError(
            f'{config_path} is not the config of a run: it must hold groups of keys; restore it.'
        )
    name = config.get('method', {}).get('name')
    method = METHODS.get(name, Method) if isinstance(name, str) else Method
    folders = stage_folders(root)
    reports = [
        {'stage': folder.number} | report
        for folder in folders
        if (report := folder.read_report()) is not None
    ]
    finished = {report['stage'] for report in reports}
    return RunFolder(
        name=root.resolve().name,
        config=config,
        records=read_metrics(root / 'metrics.jsonl'),
        reports=reports,
        # The picture of an unfinished stage may be incomplete.
        pictures={
            f.number: f.picture for f in folders if f.number in finished and f.picture.is_file()
        },
        memory=_newest_memory(folders, method),
    )


def _newest_memory(folders: Sequence[StageFolder], method: type[Method]) -> Memory | None:
    """The memory in the newest checkpoint that has one; None if the method has no table of it."""
    if method.memory_format is None:
        return None
    for folder in reversed(folders):
        if not folder.newest_checkpoint:
            continue
        with StageCheckpoints(folder.checkpoints) as checkpoints:
            if not checkpoints.has('memory'):
                continue
            memory, step = checkpoints.read('memory'), checkpoints.latest_step
        names = read_categories(folder.root.parent / 'categories.json').names
        return Memory(folder.number, step, method.memory_format.table(memory, names))
    return None
