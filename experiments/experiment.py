"""The definition of an experiment: its settings and variants, and the rows of its tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from experiments import paper
from experiments.scores import metrics_of, run_scores
from experiments.sweep import Run, Variant
from experiments.tables import Row
from simcis_jax.runtime.json_files import read_json
from simcis_jax.training.stage_folder import StageFolder

Results = Mapping[Path, Mapping]  # Folder of a finished run -> its results.


@dataclasses.dataclass(frozen=True)
class Setting:
    """A config, and the table of the paper to compare its results with."""

    config: str  # Name of a file in configs/, or path of another file.
    table: str = ''  # Number in the paper.
    protocol: str = ''  # Protocol in that table, such as '100-5'.

    @property
    def name(self) -> str:
        """Name of the setting in folders and tables."""
        return Path(self.config).stem

    @property
    def source(self) -> str:
        """Where the paper prints its numbers."""
        data = 'COCO' if self.table == '9' else 'ADE20K'
        return f'table {self.table}, {data} {self.protocol}'


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment: the runs it needs and the output it writes."""

    name: str  # Base name of the output files.
    title: str
    settings: Mapping[str, Sequence[Setting]]  # By data set.
    # The table rows, or a function of the config and the number of classes that returns them.
    variants: Sequence[Variant] | Callable[[ConfigDict, int], Sequence[Variant]]
    with_scores: bool = True  # Whether to write score tables and bar charts.
    # Further analysis of (runs, results, output folder): writes figures and returns Markdown.
    analyze: Callable[[Sequence[Run], Results, Path], str] | None = None

    def variants_of(self, config: ConfigDict, num_classes: int) -> Sequence[Variant]:
        """The variants of a setting."""
        return self.variants(config, num_classes) if callable(self.variants) else self.variants


def make_rows(setting: Setting, metric: str, runs: Sequence[Run], results: Results) -> list[Row]:
    """The table rows of a setting: its variants, then the rows that only the paper has.

    Args:
        setting: the setting.
        metric: a key of `scores.METRICS`.
        runs: all runs of the setting.
        results: results of the finished runs.
    """
    printed = paper.read(setting.table, setting.protocol, metric)
    rows = []
    for label in dict.fromkeys(run.variant.label for run in runs):
        done = [run for run in runs if run.variant.label == label and run.folder in results]
        scores = {
            run.seed: run_scores(results[run.folder], metric, _base_names(run)) for run in done
        }
        megabytes = replayed_megabytes(done[0]) if done else None
        rows.append(Row(label, scores, printed.pop(label, None), megabytes))
    return rows + [Row(name, {}, row) for name, row in printed.items()]


def metrics(runs: Sequence[Run], results: Results) -> list[str]:
    """The metrics of a setting's finished runs."""
    found = [results[run.folder] for run in runs if run.folder in results]
    return metrics_of(found[0]) if found else []


def class_names(run: Run, labels: Sequence[int]) -> set[str]:
    """Names of the classes with these labels in the data set of a run."""
    entries = read_json(run.folder / 'categories.json', list)
    return {entries[label]['name'] for label in labels}


def _base_names(run: Run) -> set[str] | None:
    """Names of the base classes for joint training, whose stage 1 has all classes; else None."""
    return class_names(run, run.base_classes) if run.variant.joint else None


def replayed_megabytes(run: Run) -> float | None:
    """Size of the replay memory of the last stage in 10**6 bytes; None if it was not recorded."""
    path = StageFolder(run.folder / f'stage_{len(run.stages)}').replay
    if not path.is_file():
        return None
    stored = read_json(path, dict)
    return (stored.get('image_bytes', 0) + stored.get('query_bytes', 0)) / 1e6
