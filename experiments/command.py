"""The command line that all experiments share.

    python -m experiments.NAME --data=shapes --workdir=runs/shapes [--seeds=0,1,2] [--dry_run]

`--config.GROUP.KEY=VALUE` changes a value of all runs, `--config=FILE` replaces the settings by one
of your own. What is finished in the folder, by whatever experiment, is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from experiments import figures, tables
from experiments.experiment import Experiment, Results, Setting, make_rows, metrics
from experiments.scores import METRICS
from experiments.sweep import Run, cost, finish, finished, in_order, make_run
from simcis_jax.data import open_source
from simcis_jax.errors import InputError
from simcis_jax.runtime import command, interruption
from simcis_jax.training.workdir import write_atomically

CONFIGS = Path(__file__).parent.parent / 'configs'
# Data sets by name, and their classes.
DATA = {'shapes': 12, 'camvid': 11, 'ade20k': 150, 'coco': 133}


def make_parser(experiment: Experiment) -> argparse.ArgumentParser:
    """The flags that experiments share."""
    parser = argparse.ArgumentParser(
        prog=f'experiments.{experiment.name}', description=experiment.title, allow_abbrev=False
    )
    parser.add_argument('--workdir', required=True, help='Folder of all runs and tables.')
    parser.add_argument('--data', choices=sorted(experiment.settings), help='Which settings.')
    parser.add_argument('--config', help='A config of your own instead.')
    parser.add_argument('--data_root', help='Folder of the data set, or of the prepared ones.')
    parser.add_argument('--seeds', default='0,1,2', help='Separated by commas.')
    parser.add_argument('--settings', help='Only these configs, separated by commas.')
    parser.add_argument('--variants', help='Only rows that contain one of these words.')
    parser.add_argument('--dry_run', action='store_true', help='Only list the runs and their cost.')
    parser.add_argument(
        '--table_only', action='store_true', help='Only write the table of what is finished.'
    )
    return parser


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a command line asks for."""

    experiment: Experiment
    settings: Sequence[Setting]
    is_papers: bool  # The data set is the paper's, so that numbers can be compared.
    runs: Sequence[Run]  # In the order of the table.
    workdir: Path
    overrides: Sequence[str]  # '--config.GROUP.KEY=VALUE'


def make_plan(experiment: Experiment, arguments: Sequence[str]) -> Plan:
    """Turns arguments into runs.

    Raises:
        InputError: a value is unknown or impossible.
        FileError: a data set whose classes must be counted is not there.
    """
    options, overrides = make_parser(experiment).parse_known_args(arguments)
    unknown = [text for text in overrides if not text.startswith('--config.')]
    if unknown:
        raise InputError(f'{unknown[0]} is unknown; --help lists what there is.')
    if (options.data is None) == (options.config is None):
        raise InputError('give either --data, one of the known data sets, or --config=FILE.')
    own = options.data is None
    settings = [Setting(options.config)] if own else experiment.settings[options.data]
    if options.settings:
        settings = _chosen(settings, options.settings.split(','))
    runs = []
    for setting in settings:
        path = Path(setting.config if own else CONFIGS / f'{setting.config}.py')
        config = read_config(path, overrides, options.data_root)
        num_classes = count_classes(config) if own else DATA[options.data]
        variants = experiment.variants_of(config, num_classes)
        if options.variants:
            texts = options.variants.split(',')
            variants = [v for v in variants if any(_has_words(v.label, text) for text in texts)]
        if not variants:
            raise InputError(f'--variants={options.variants} leaves no row.')
        for variant in variants:
            for seed in options.seeds.split(','):
                workdir = Path(options.workdir)
                runs.append(
                    make_run(setting.name, config, variant, int(seed), num_classes, workdir)
                )
    is_papers = options.data in ('ade20k', 'coco')
    return Plan(experiment, settings, is_papers, runs, Path(options.workdir), overrides)


def _has_words(label: str, text: str) -> bool:
    """Whether text is in the label as whole words, so that 'order 1' is not 'order 10'."""
    return re.search(rf'(?<!\w){re.escape(text)}(?!\w)', label) is not None


def _chosen(settings: Sequence[Setting], names: Sequence[str]) -> list[Setting]:
    known = [setting.name for setting in settings]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f'--settings={unknown[0]} is none of {known}.')
    return [setting for setting in settings if setting.name in names]


def read_config(path: Path, overrides: Sequence[str], data_root: str | None) -> ConfigDict:
    """The config of a file with changes from the command line; an unknown key ends the program.

    Args:
        path: of the file.
        overrides: '--config.GROUP.KEY=VALUE'.
        data_root: where the data set is, or the folder that holds the config's prepared one.
    """
    config = command.read_config(path, overrides)
    if data_root:
        folder = Path(data_root)
        is_prepared = config.data.name == 'prepared'
        config.data.root = str(folder / Path(config.data.root).name if is_prepared else folder)
    return config


def count_classes(config: ConfigDict) -> int:
    """Classes of the data set of a config, which must be there."""
    data = config.data
    return len(open_source(data.name, data.val_split, root=data.root, size=data.size).categories)


def write(plan: Plan, results: Results, *, whole: bool = True) -> str:
    """Writes tables, figures and numbers of what is finished; returns the tables.

    Args:
        plan: all runs.
        results: of those that are finished.
        whole: also write what the experiment adds, which may take long.
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
                figures.bars(title, rows, with_paper=plan.is_papers),
                plan.workdir / f'{plan.experiment.name}-{setting.name}-{metric}',
            )
    if plan.experiment.more and whole:
        texts.append(plan.experiment.more(plan.runs, results, plan.workdir))
    done = [run for run in plan.runs if run.folder in results]
    texts.append(tables.run_list(done, plan.overrides))
    text = '\n'.join(texts)
    write_atomically(plan.workdir / f'{plan.experiment.name}.md', text)
    write_atomically(plan.workdir / f'{plan.experiment.name}.json', json.dumps(numbers, indent=2))
    return text


def run(experiment: Experiment, arguments: Sequence[str]) -> None:
    """Does what the arguments say.

    Raises:
        InputError: a value is unknown, impossible, or not the one a folder was started with.
        FileError: a file is missing or cannot be written.
    """
    plan = make_plan(experiment, arguments)
    if '--dry_run' in arguments:
        print(cost(in_order(plan.runs), plan.workdir))
        return
    results = {r.folder: found for r in plan.runs if (found := finished(r)) is not None}
    if '--table_only' not in arguments:
        for done, found in finish(in_order(plan.runs), plan.workdir):
            if done.folder not in results:
                results[done.folder] = found
                write(plan, results, whole=False)
    plan.workdir.mkdir(parents=True, exist_ok=True)
    print('\n' + write(plan, results))


def main(experiment: Experiment) -> None:
    """The command of an experiment."""

    def program() -> None:
        interruption.stop_at_once()
        run(experiment, sys.argv[1:])

    command.start(program)
