"""What a method scores after every stage, and what a later stage costs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from experiments import figures, tables
from experiments.experiment import Results, metrics, replayed_megabytes
from experiments.scores import METRICS
from experiments.sweep import Run
from simcis_jax.settings.validated import from_config
from simcis_jax.training import programs
from simcis_jax.training.metrics_log import read_metrics
from simcis_jax.training.optimizer import count_parameters
from simcis_jax.training.stage_data import num_steps_of


def analyze(runs: Sequence[Run], results: Results, folder: Path) -> str:
    """Draws the scores over the stages; returns the table of costs of every setting.

    Args:
        runs: all runs of the experiment.
        results: results of the finished runs.
        folder: where the figures are written.
    """
    texts = []
    done = [run for run in runs if run.folder in results and len(run.stages) > 1]
    for setting, group in itertools.groupby(done, lambda run: run.setting):
        found = list(group)
        metric = metrics(found, results)[0]
        title = f'{setting}: {METRICS[metric]} of all classes over the stages'
        panels = {'': scores_over_stages(found, results, metric)}
        figure = figures.lines(title, panels, x_labels=['stage'], y_label=METRICS[metric])
        figures.save(figure, folder / f'compare_methods-{setting}-stages')
        texts.append(cost_table(f'{setting}: what a later stage costs', found))
    return '\n'.join(texts)


def scores_over_stages(
    runs: Sequence[Run], results: Results, metric: str
) -> dict[str, dict[float, float]]:
    """Variant -> stage -> the mean over seeds of the score of all classes seen so far."""
    by_label: dict[str, list[list[float]]] = {}
    for run in runs:
        stages = [report[metric]['all'] for report in results[run.folder]['stages']]
        by_label.setdefault(run.variant.label, []).append(stages)
    return {
        label: {
            float(stage): float(np.mean(x))
            for stage, x in enumerate(zip(*rows, strict=True), start=1)
        }
        for label, rows in by_label.items()
    }


def cost_table(title: str, runs: Sequence[Run]) -> str:
    """One row per variant, from its first seed."""
    head = ['', 'parameters trained', 'of', 'seconds per stage', 'stored MB']
    rows = []
    for label in dict.fromkeys(run.variant.label for run in runs):
        run = next(run for run in runs if run.variant.label == label)
        trained, total = later_parameters(run)
        seconds, megabytes = seconds_per_stage(run), replayed_megabytes(run)
        rows.append([
            label,
            f'{trained:,}',
            f'{total:,}',
            '-' if seconds is None else f'{seconds:.0f}',
            '-' if megabytes is None else f'{megabytes:.2f}',
        ])  # fmt: skip
    return tables.table(title, head, rows)


def later_parameters(run: Run) -> tuple[int, int]:
    """Number of parameters that the last stage trains, and of all."""
    values = from_config(run.config)
    model = values.method.make_model(run.stages, values.model)
    params, _ = jax.eval_shape(programs.initialize_of(values, model), jax.random.key(0))
    frozen = programs.frozen_parameters(values, model, run.stages)[-1]
    return count_parameters(params, frozen)


def seconds_per_stage(run: Run) -> float | None:
    """Seconds of the train steps of the last stage, without compiling them; None if unknown."""
    records = read_metrics(run.folder / 'metrics.jsonl')
    last = [record for record in records if record['stage'] == len(run.stages)]
    rates = [record['steps_per_second'] for record in last if 'steps_per_second' in record]
    if not rates:
        return None
    steps = num_steps_of(run.stages[-1], from_config(run.config))
    return steps / float(np.median(rates))
