"""The folder of one stage in a work directory, or that of a converted model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from simcis_jax.errors import InputError, writing
from simcis_jax.evaluation.stage_report import check_report
from simcis_jax.runtime.files import write_atomically
from simcis_jax.runtime.json_files import read_json
from simcis_jax.training.checkpointing import steps_in


@dataclasses.dataclass(frozen=True)
class StageFolder:
    """The folder of one stage."""

    root: Path
    writes: bool = True  # Only the main process writes.
    reads_best: bool = False  # `checkpoints` are the best weights instead of the newest.

    @property
    def number(self) -> int | None:
        """N of stage_N; None if the folder has another name."""
        name, _, number = self.root.name.partition('_')
        return int(number) if name == 'stage' and number.isdecimal() else None

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.best if self.reads_best else self.root / 'checkpoints'

    @property
    def best(self) -> Path:
        """The folder of the weights with the best score."""
        return self.root / 'best'

    @property
    def counts(self) -> Path:
        """The folder of the counts of an unfinished evaluation."""
        return self.root / 'counts'

    @property
    def replay(self) -> Path:
        """The list of what the stage replays from earlier stages."""
        return self.root / 'replay.json'

    @property
    def picture(self) -> Path:
        """The picture with predictions for some of the images."""
        return self.root / 'predictions.png'

    @property
    def newest_checkpoint(self) -> Path | None:
        """The newest checkpoint, a folder named by its step; None if there is none."""
        steps = steps_in(self.checkpoints)
        return self.checkpoints / f'{steps[-1]}' if steps else None

    @property
    def is_finished(self) -> bool:
        """Whether it has a checkpoint and was evaluated, or is a converted model.

        The checkpoint of a converted model holds weights only.
        """
        newest = self.newest_checkpoint
        return newest is not None and (
            self.read_report() is not None or not (newest / 'rest').exists()
        )

    def read_report(self) -> dict | None:
        """The scores, if the stage was evaluated.

        Raises:
            InputError: the file does not hold scores.
            FileError: the file cannot be read.
        """
        path = self.root / 'evaluation.json'
        if not path.exists():
            return None
        try:
            report = read_json(path, dict)
            check_report(report)
        except InputError as error:
            raise InputError(
                f'{path} is damaged ({error}); delete it and repeat the command of the run, which '
                'evaluates the stage again.'
            ) from None
        return report

    def copy_from(self, other: StageFolder) -> None:
        """Copies a finished stage of another run, the report last; no-op if already copied."""
        if self.writes and self.read_report() is None:
            with writing(self.root):  # The error of `shutil.copytree` would hide the cause.
                self.root.mkdir(parents=True, exist_ok=True)
                for path in sorted(other.root.rglob('*')):
                    target = self.root / path.relative_to(other.root)
                    if path.is_dir():
                        target.mkdir(exist_ok=True)
                    elif path.name != 'evaluation.json':
                        shutil.copy2(path, target)
            report = other.read_report()
            if report is not None:
                self.write_report(report)

    def write_replay(self, replayed: Mapping) -> None:
        """Writes what the stage replays from earlier stages."""
        if self.writes:
            with writing(self.root):
                self.root.mkdir(parents=True, exist_ok=True)
            write_atomically(self.replay, json.dumps(replayed, indent=2))

    def remove_counts(self) -> None:
        """Removes the counts of an evaluation whose scores are written."""
        if self.writes:
            shutil.rmtree(self.counts, ignore_errors=True)

    def write_report(self, report: Mapping) -> None:
        """Writes the scores, which marks the stage as finished."""
        if self.writes:
            write_atomically(self.root / 'evaluation.json', json.dumps(report, indent=2))
