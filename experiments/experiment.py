"""A table or figure of the paper: the settings and variants it needs, and its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from experiments import paper
from experiments.scores import metrics_of, run_scores
from experiments.sweep import Run, Variant
from experiments.tables import Row
from simcis_jax.data.category_list import read_json

Results = Mapping[Path, Mapping]  # Of finished runs, by their folder.


@dataclasses.dataclass(frozen=True)
class Setting:
    """A config, and where the paper has numbers to set beside its own."""

    config: str  # Name of a file in configs/, or path of another one.
    table: str = ''  # Number in the paper.
    protocol: str = ''  # The paper's, on ADE20K (table 9: COCO).

    @property
    def name(self) -> str:
        """What its runs are called."""
        return Path(self.config).stem

    @property
    def source(self) -> str:
        """What the paper's numbers are."""
        data = 'COCO' if self.table == '9' else 'ADE20K'
        return f'table {self.table}, {data} {self.protocol}'


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What one command reproduces."""

    name: str  # Of the files it writes.
    title: str
    settings: Mapping[str, Sequence[Setting]]  # By data.
    # The rows; or a function of a setting's config and number of classes.
    variants: Sequence[Variant] | Callable[[ConfigDict, int], Sequence[Variant]]
    with_scores: bool = True  # Whether tables of scores are asked for.
    # What else to write, given all runs, the results and the folder: markdown.
    more: Callable[[Sequence[Run], Results, Path], str] | None = None

    def variants_of(self, config: ConfigDict, num_classes: int) -> Sequence[Variant]:
        """The rows of a setting."""
        return self.variants(config, num_classes) if callable(self.variants) else self.variants


def make_rows(setting: Setting, metric: str, runs: Sequence[Run], results: Results) -> list[Row]:
    """The rows of a setting: its variants, then what only the paper has.

    Args:
        setting: whose rows.
        metric: of `scores.METRICS`.
        runs: of the setting, finished or not.
        results: of those that are finished.
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
    """Names of classes, as the run recorded them."""
    entries = read_json(run.folder / 'categories.json', list)
    return {entries[label]['name'] for label in labels}


def _base_names(run: Run) -> set[str] | None:
    """The setting's base classes where the first stage of the run has others."""
    return class_names(run, run.base_classes) if run.variant.joint else None


def replayed_megabytes(run: Run) -> float | None:
    """10**6 bytes that the last stage of a run keeps of the past; None if it was not recorded."""
    path = run.folder / f'stage_{len(run.stages)}' / 'replay.json'
    if not path.is_file():
        return None
    stored = read_json(path, dict)
    return (stored.get('image_bytes', 0) + stored.get('query_bytes', 0)) / 1e6
