"""Evaluates a run at the end of each stage and, optionally, every few steps during a stage."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from simcis_jax.continual.stages import Stage
from simcis_jax.data.source import Source, images_with
from simcis_jax.evaluation import pictures
from simcis_jax.evaluation.class_groups import class_groups
from simcis_jax.evaluation.evaluator import Evaluator
from simcis_jax.evaluation.results_table import format_per_class
from simcis_jax.evaluation.stage_report import different_settings
from simcis_jax.runtime import parallel
from simcis_jax.runtime.progress import duration
from simcis_jax.settings.relations import SCORES
from simcis_jax.settings.validated import Settings
from simcis_jax.training.checkpointing import StageCheckpoints, keep_only, steps_in
from simcis_jax.training.metrics_log import MetricsLog
from simcis_jax.training.stage_data import num_steps_of
from simcis_jax.training.stage_folder import StageFolder
from simcis_jax.training.workdir import Workdir
from simcis_jax.types import TrainState

# Settings that change which steps, images and pictures there are, but not the scores.
NOT_SCORING = ('every', 'num_images', 'batch_size', 'num_pictures')


@dataclasses.dataclass(frozen=True)
class StageEvaluation:
    """What the evaluations of all stages share."""

    evaluator: Evaluator
    source: Source
    stages: Sequence[Stage]
    settings: Settings
    workdir: Workdir

    def at_end(self, stage: Stage, state: TrainState) -> dict:
        """Evaluates a stage on all classes seen so far; writes the scores and the picture."""
        start = time.monotonic()
        folder = self.workdir.stage(stage.number)
        scores, picture = self.evaluator.evaluate(
            state.params,
            self.source,
            self.groups(stage),
            title=f'stage {stage.number} evaluation',
            counts_folder=folder.counts,
        )
        report = {'stage': stage.number, 'settings': self.scoring_settings()} | scores
        if parallel.is_main():
            print(format_per_class(report))
            print(f'evaluated in {duration(time.monotonic() - start)}', flush=True)
            pictures.write_png(folder.picture, picture)
            folder.write_report(report)
            folder.remove_counts()
        return report

    def scoring_settings(self) -> dict[str, Any]:
        """The settings that change the scores, as in a file of JSON."""
        settings = dataclasses.asdict(self.settings.evaluation)
        settings = {key: value for key, value in settings.items() if key not in NOT_SCORING}
        return settings | {'tasks': list(settings['tasks'])}

    def seconds_to_come(self, stage: Stage, step: int) -> float:
        """The time of all evaluations of the run after a step of a stage.

        It is estimated from the time per image of the last evaluation; 0 if there was none yet.
        """
        seconds = self.evaluator.seconds_per_image
        if seconds is None:
            return 0.0
        total = 0
        for later in self.stages[stage.index :]:
            at_end = self._num_images[later.index]
            inside = min(at_end, self.settings.evaluation.num_images or at_end)
            done = step if later.index == stage.index else 0
            due = self.steps_inside(num_steps_of(later, self.settings))
            total += sum(at > done for at in due) * inside + at_end
        return total * seconds

    def steps_inside(self, num_steps: int) -> range:
        """The steps after which a stage of `num_steps` steps is evaluated, without the last."""
        every = self.settings.evaluation.every
        return range(every, num_steps, every) if every else range(0)

    @functools.cached_property
    def _num_images(self) -> list[int]:
        """The number of images that show a seen class, by stage."""
        return [len(images_with(self.source, stage.seen)) for stage in self.stages]

    def groups(self, stage: Stage) -> dict[str, tuple[int, ...]]:
        """The labels of each class group after this stage."""
        return class_groups([s.current for s in self.stages], stage.index)


class EvaluationInStage:
    """Evaluates one stage every few steps, logs the scores and keeps the best weights.

    Scores are logged with the settings of the evaluation, which may change when a run resumes. Only
    those that were made with the settings of now are compared.

    Args:
        shared: what all stages share.
        stage: the stage.
        num_steps: its number of steps; the evaluation after the last is `StageEvaluation.at_end`.
        log: where the scores go; None in processes that do not write.
        records: what the log holds about this stage already.
    """

    def __init__(
        self,
        shared: StageEvaluation,
        stage: Stage,
        num_steps: int,
        log: MetricsLog | None,
        records: Sequence[Mapping],
    ):
        self._shared, self._stage, self._log = shared, stage, log
        self._steps = shared.steps_inside(num_steps)
        self._best_name = f'val_{shared.settings.training.keep_best}'
        scored = {record['step']: record for record in records if any(map(_is_score, record))}
        self._finished = set(scored)
        best = shared.workdir.stage(stage.number).best
        if log is not None:  # Weights without a score are those of steps that are repeated.
            keep_only(best, scored)
        parallel.wait_for_all('best')
        sample = {'num_images': shared.settings.evaluation.num_images}
        self._settings, self._best = shared.scoring_settings() | sample, -math.inf
        for step in steps_in(best):
            score, different = scored[step].get(self._best_name), self._difference(scored[step])
            if score is not None and different is None:
                self._best = max(self._best, score)
            elif score is not None and parallel.is_main():
                print(
                    f'stage {stage.number}: the best weights so far, of step {step}, were scored '
                    f'with {different}; the next evaluation replaces them',
                    flush=True,
                )

    def _difference(self, record: Mapping) -> str | None:
        """The settings with which scores were made, if they cannot be compared with those of now.

        Other tasks do not change the score of a task.
        """
        now = {'settings': {k: x for k, x in self._settings.items() if k != 'tasks'}}
        return different_settings(record, now, 'now')

    def is_due(self, step: int) -> bool:
        """Whether the state after this step is to be evaluated and has not been yet."""
        return step in self._steps and step not in self._finished

    def seconds_to_come(self, step: int) -> float:
        """The estimated time of all evaluations of the run after a step."""
        return self._shared.seconds_to_come(self._stage, step)

    def evaluate(self, step: int, state: TrainState) -> None:
        """Evaluates the state after a step."""
        shared, number = self._shared, self._stage.number
        folder = shared.workdir.stage(number)
        report, _ = shared.evaluator.evaluate(
            state.params,
            shared.source,
            shared.groups(self._stage),
            num_images=shared.settings.evaluation.num_images,
            title=f'stage {number} step {step} evaluation',
            counts_folder=folder.counts,
        )
        scores = {
            f'val_{name}' if group == 'all' else f'val_{name}_{group}': report[name][group]
            for name in SCORES
            if name in report
            for group in ('all', 'base', 'novel')
            if report[name][group] is not None
        }
        self._keep_best(step, state, scores, folder)
        self._finished.add(step)
        if self._log is not None:
            self._log.write(step, scores, self._settings)
            folder.remove_counts()
            shown = '  '.join(f'{name} {score:.1f}' for name, score in scores.items())
            print(f'stage {number} step {step}  {shown}', flush=True)

    def _keep_best(
        self, step: int, state: TrainState, scores: Mapping[str, float], folder: StageFolder
    ) -> None:
        if scores.get(self._best_name, -math.inf) <= self._best:
            return
        self._best = scores[self._best_name]
        with StageCheckpoints(folder.best, keep=1) as checkpoints:
            checkpoints.save_weights(step, state.params, state.memory)


def _is_score(name: str) -> bool:
    return name.startswith('val_')
