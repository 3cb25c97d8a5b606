"""What a run leaves in its folder, and how the same command finds it again.

config.json                 the resolved config; another config is refused
categories.json             the classes, as COCO lists them
metrics.jsonl, tensorboard/ losses while training
stage_N/checkpoints/        the last two checkpoints of a stage
stage_N/evaluation.json     its scores; the stage is finished when this exists
stage_N/predictions.png     image, ground truth, prediction
results.json, results.txt   the table after the last finished stage
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from simcis_jax.evaluation import continual


def write_whole(path: Path, text: str) -> None:
    """Writes a text file so that a reader finds either the old or the new one, never a part."""
    part = path.with_name(path.name + '.part')
    part.write_text(text)
    os.replace(part, path)


@dataclasses.dataclass(frozen=True)
class StageFolder:
    """The folder of one stage."""

    root: Path

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

    def read_report(self) -> dict | None:
        """The scores, if the stage is finished."""
        path = self.root / 'evaluation.json'
        return json.loads(path.read_text()) if path.exists() else None

    def adopt(self, other: StageFolder) -> None:
        """Copies a finished stage of another run, its report last; does nothing the second time."""
        if self.read_report() is None:
            shutil.copytree(
                other.root,
                self.root,
                ignore=shutil.ignore_patterns('evaluation.json'),
                dirs_exist_ok=True,
            )
            report = other.read_report()
            if report is not None:
                self.write_report(report)

    def write_report(self, report: Mapping) -> None:
        """Writes the scores: from now on the stage is finished."""
        write_whole(self.root / 'evaluation.json', json.dumps(report, indent=2))


class MetricsLog:
    """Losses as JSON lines and as TensorBoard events."""

    def __init__(self, workdir: Path, stage: int, first_step: int):
        self._stage, self._path = stage, workdir / 'metrics.jsonl'
        if self._path.exists():
            # A killed run may have logged steps that its last checkpoint does not know.
            lines = [line for line in self._path.read_text().splitlines() if line.endswith('}')]
            known = [line for line in lines if self._is_before(json.loads(line), first_step)]
            write_whole(self._path, ''.join(line + '\n' for line in known))
        self._file = self._path.open('a')
        self._events = SummaryWriter(
            str(workdir / 'tensorboard' / f'stage_{stage}'), purge_step=first_step + 1
        )

    def _is_before(self, record: Mapping, first_step: int) -> bool:
        return (record['stage'], record['step']) <= (self._stage, first_step)

    def write(self, step: int, numbers: Mapping[str, float], rate: float) -> None:
        """Adds one record."""
        record = {'stage': self._stage, 'step': step, 'steps_per_second': round(rate, 3)} | numbers
        self._file.write(json.dumps(record) + '\n')
        self._file.flush()
        for name, value in numbers.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes both."""
        self._file.close()
        self._events.close()


class Workdir:
    """The folder of one run; nothing is written before `claim`."""

    def __init__(self, root: str | Path, config: Mapping[str, Any]):
        self.root = Path(root)
        self._config = json.loads(json.dumps(config))  # Tuples become lists, as in the file.

    def claim(self) -> None:
        """Makes the folder this config's, or finds that it is.

        Raises:
            ValueError: the folder holds a run of another config, or files that are no run.
        """
        path = self.root / 'config.json'
        if path.exists():
            difference = first_difference(json.loads(path.read_text()), self._config)
            if difference:
                raise ValueError(
                    f'{self.root} holds a run of another config: {difference}; choose another '
                    '--workdir, or repeat that config to continue it.'
                )
            return
        if self.root.exists() and any(self.root.iterdir()):
            raise ValueError(
                f'{self.root} is not empty and holds no config.json of a run; choose an empty or '
                'new --workdir.'
            )
        self.root.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(self._config, indent=2))

    def write_categories(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Records the classes, so that the model can be used where the data set is not."""
        write_whole(self.root / 'categories.json', json.dumps(entries, indent=2))

    def stage(self, number: int) -> StageFolder:
        """The folder of a stage (1 = base)."""
        return StageFolder(self.root / f'stage_{number}')

    def metrics_log(self, stage: int, first_step: int) -> MetricsLog:
        """The log, cut back to `first_step` of `stage`."""
        return MetricsLog(self.root, stage, first_step)

    def write_results(self, results: Mapping) -> None:
        """Writes the table as JSON and as text."""
        write_whole(self.root / 'results.json', json.dumps(results, indent=2))
        write_whole(self.root / 'results.txt', continual.format_table(results) + '\n')


def first_difference(old: Any, new: Any, path: str = '') -> str | None:
    """Where two configs differ first, in words; None if they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            here = f'{path}.{key}' if path else key
            if key not in old or key not in new:
                return f'{here} is only in {"the new config" if key in new else "that run"}'
            found = first_difference(old[key], new[key], here)
            if found:
                return found
        return None
    return None if old == new else f'{path} is {old!r} there and {new!r} now'
