"""The command line that all experiments share.

    python -m experiments.NAME --data=shapes --workdir=runs/shapes [--seeds=0,1,2] [--dry_run]

`--config.GROUP.KEY=VALUE` changes a value in all runs; `--config=NAME|FILE` replaces the settings
by another config. Runs that are finished in --workdir, by any experiment, are reused.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from experiments import figures, tables
from experiments.experiment import Experiment, Results, Setting, make_rows, metrics
from experiments.scores import METRICS
from experiments.sweep import Run, cost, execution_order, finish, finished, make_run
from simcis_jax.data import open_source
from simcis_jax.errors import InputError
from simcis_jax.runtime import command, interruption
from simcis_jax.runtime.files import write_atomically
from simcis_jax.settings.groups import flat
from simcis_jax.settings.keys import DECLARED, GROUPS

# Data set -> number of classes.
DATA = {'shapes': 12, 'camvid': 11, 'ade20k': 150, 'coco': 133}


def make_parser(experiment: Experiment) -> argparse.ArgumentParser:
    """The parser of the flags of all experiments."""
    parser = command.make_parser(f'experiments.{experiment.name}', experiment.title)
    parser.add_argument(
        '--workdir', type=command.path, required=True, help='Folder for all runs and tables.'
    )
    parser.add_argument(
        '--data', choices=sorted(experiment.settings), help='Data set; selects the settings.'
    )
    parser.add_argument(
        '--config', type=command.path, help='Config name or file to use instead of --data.'
    )
    parser.add_argument(
        '--data_root', type=command.path, help='Folder of the data set, or of prepared data sets.'
    )
    parser.add_argument(
        '--seeds', type=command.numbers, default=(0, 1, 2), help='Seeds, separated by commas.'
    )
    parser.add_argument('--settings', help='Run only these configs, separated by commas.')
    parser.add_argument(
        '--variants', help='Run only variants that contain one of these texts, separated by commas.'
    )
    parser.add_argument(
        '--dry_run', action='store_true', help='List the runs and their cost, run nothing.'
    )
    parser.add_argument(
        '--table_only',
        action='store_true',
        help='Write the tables of the finished runs, run nothing.',
    )
    return parser


@dataclasses.dataclass(frozen=True)
class Plan:
    """The runs and settings that a command line selects."""

    experiment: Experiment
    settings: Sequence[Setting]
    is_paper_data: bool  # The data set is one of the paper's, so numbers are comparable.
    runs: Sequence[Run]  # In the order of the table rows.
    workdir: Path
    overrides: Sequence[str]  # '--config.GROUP.KEY=VALUE'


def make_plan(experiment: Experiment, arguments: Sequence[str]) -> Plan:
    """Turns command-line arguments into runs.

    Raises:
        InputError: a config key is unknown, or a value is invalid.
        FileError: the data set of --config cannot be read.
    """
    options, overrides = command.split_overrides(make_parser(experiment), arguments)
    if (options.data is None) == (options.config is None):
        raise InputError('give either --data, one of the known data sets, or --config.')
    is_custom = options.data is None
    settings = [Setting(options.config)] if is_custom else experiment.settings[options.data]
    if options.settings:
        settings = _select_settings(settings, options.settings.split(','))
    runs, workdir = [], Path(options.workdir)
    read = functools.cache(lambda name: read_config(name, overrides, options.data_root))
    for setting in settings:
        config = read(setting.config)
        num_classes = count_classes(config) if is_custom else DATA[options.data]
        variants = experiment.variants_of(config, num_classes)
        variants = [v for v in variants if v.config_name(setting.config)]
        if options.variants:
            texts = options.variants.split(',')
            variants = [
                v for v in variants if any(_contains_words(v.label, text) for text in texts)
            ]
        for variant in variants:
            config = read(variant.config_name(setting.config))
            for seed in options.seeds:
                runs.append(make_run(setting.name, config, variant, seed, num_classes, workdir))
    if not runs:
        raise InputError(
            f'--variants={options.variants} matches no variant of these settings; leave it out to '
            'see all with --dry_run.'
        )
    for key in command.changed_keys(overrides):
        if not any(key in flat(run.config, GROUPS) for run in runs):
            raise InputError(f'{key} belongs to a method that no run chooses; leave it out.')
    is_paper_data = options.data in ('ade20k', 'coco')
    return Plan(experiment, settings, is_paper_data, runs, workdir, overrides)


def _contains_words(label: str, text: str) -> bool:
    """Whether the label contains the text as whole words: 'order 1' does not match 'order 10'."""
    return re.search(rf'(?<!\w){re.escape(text)}(?!\w)', label) is not None


def _select_settings(settings: Sequence[Setting], names: Sequence[str]) -> list[Setting]:
    known = [setting.name for setting in settings]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f'--settings={unknown[0]} is none of {known}.')
    return [setting for setting in settings if setting.name in names]


def read_config(name: str, overrides: Sequence[str], data_root: str | None) -> ConfigDict:
    """A config with overrides from the command line.

    Args:
        name: name of a packaged config, or path of a config file.
        overrides: arguments '--config.GROUP.KEY=VALUE'.
        data_root: folder of the data set, or the folder that contains the prepared data set.
    """
    config = command.read_config(name, overrides)
    values = flat(config.to_dict(), GROUPS)
    for key in command.changed_keys(overrides):  # Variants are made of these values.
        DECLARED[key].check(key, values[key])
    if data_root:
        folder = Path(data_root)
        is_prepared = config.data.name == 'prepared'
        config.data.root = str(folder / Path(config.data.root).name if is_prepared else folder)
    return config


def count_classes(config: ConfigDict) -> int:
    """Number of classes of the data set of a config; opens the data set."""
    data = config.data
    return len(open_source(data.name, data.train_split, root=data.root, size=data.size).categories)


def write(plan: Plan, results: Results, *, with_analysis: bool = True) -> str:
    """Writes tables, figures and JSON of the finished runs; returns the tables.

    Args:
        plan: all runs.
        results: results of the finished runs.
        with_analysis: whether to run the analysis of the experiment, which may take long.
    """
    texts, numbers = [f'## {plan.experiment.title}\n'], []
    for setting in plan.settings if plan.experiment.with_scores else ():
        runs = [run for run in plan.runs if run.setting == setting.name]
        for metric in metrics(runs, results):
            rows = make_rows(setting, metric, runs, results)
            title = f'{setting.name}: {METRICS[metric]}'
            texts.append(tables.markdown(title, rows, setting.source))
            numbers += [
                {'setting': setting.name, 'metric': metric, 'row': row.label, 'scores': row.scores}
                for row in rows
                if row.scores
            ]
            figures.save(
                figures.bars(title, rows, with_paper=plan.is_paper_data),
                plan.workdir / f'{plan.experiment.name}-{setting.name}-{metric}',
            )
    if plan.experiment.analyze and with_analysis:
        texts.append(plan.experiment.analyze(plan.runs, results, plan.workdir))
    done = [run for run in plan.runs if run.folder in results]
    texts.append(tables.run_list(done, plan.overrides))
    text = '\n'.join(texts)
    write_atomically(plan.workdir / f'{plan.experiment.name}.md', text)
    write_atomically(plan.workdir / f'{plan.experiment.name}.json', json.dumps(numbers, indent=2))
    return text


def run(experiment: Experiment, arguments: Sequence[str]) -> None:
    """Runs an experiment: trains what is missing, then writes its tables and figures.

    Raises:
        InputError: an argument is invalid, or a folder holds a run of another config.
        FileError: a file is missing or cannot be written.
    """
    plan = make_plan(experiment, arguments)
    if '--dry_run' in arguments:
        print(cost(execution_order(plan.runs), plan.workdir))
        return
    results = {r.folder: found for r in plan.runs if (found := finished(r)) is not None}
    if '--table_only' not in arguments:
        for done, found in finish(execution_order(plan.runs), plan.workdir):
            if done.folder not in results:
                results[done.folder] = found
                write(plan, results, with_analysis=False)
    plan.workdir.mkdir(parents=True, exist_ok=True)
    print('\n' + write(plan, results))


def main(experiment: Experiment) -> None:
    """The entry point of an experiment's command."""

    def program() -> None:
        interruption.stop_at_once()
        run(experiment, sys.argv[1:])

    command.start(program)
