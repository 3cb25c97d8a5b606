"""Runs the variants of a setting; finished runs and first stages are reused.

The folder of a run is named after its config file and the changed values, so experiments with the
same --workdir reuse each other's runs. Every run is an ordinary run of `simcis_jax.main`, so an
interrupted sweep resumes where it stopped.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import first_stages
from experiments.provenance import record_provenance
from simcis_jax import main
from simcis_jax.continual.stages import Stage
from simcis_jax.errors import InputError
from simcis_jax.evaluation.stage_report import different_settings
from simcis_jax.runtime import command
from simcis_jax.runtime.json_files import read_json
from simcis_jax.settings.groups import flat
from simcis_jax.settings.keys import GROUPS, ProtocolSettings
from simcis_jax.settings.method_choice import resolve
from simcis_jax.settings.validated import from_config, with_defaults
from simcis_jax.training.metrics_log import read_metrics
from simcis_jax.training.stage_evaluation import NOT_SCORING
from simcis_jax.training.workdir import MAY_CHANGE, config_difference, recorded_config

# Config keys that change neither models nor scores.
UNSCORED = (
    *(key for key in MAY_CHANGE if key != 'evaluation'),
    *(f'evaluation.{key}' for key in NOT_SCORING),
)
# Data set and task, the family if there is one, and the protocol: ade_cps_plain_100_10.
CONFIG_NAME = re.compile(r'([a-z0-9]+_[a-z]+)_(?:[a-z]+_)?([0-9]+_[0-9]+)')


@dataclasses.dataclass(frozen=True)
class Variant:
    """Changes to a config that make one row of a table."""

    label: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # Dotted config keys.
    joint: bool = False  # Train all classes in one stage, with the steps of all stages together.
    name: str = ''  # Replaces the changes in the folder name, where they are too long.
    # Of configs: 'plain' changes ade_cps_plain_100_10 in the setting ade_cps_100_10. The first that
    # has a config is taken; () = the config of the setting.
    families: tuple[str, ...] = ()

    def config_name(self, setting: str) -> str | None:
        """The config that the variant changes; None if no family has one for the setting."""
        if not self.families:
            return setting
        parts = CONFIG_NAME.fullmatch(setting)
        names = (f'{parts[1]}_{family}_{parts[2]}' for family in self.families if parts)
        return next((name for name in names if (command.CONFIGS / f'{name}.py').is_file()), None)


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run: a setting, a variant and a seed."""

    setting: str  # Name of the config file.
    variant: Variant
    seed: int
    config: dict[str, dict[str, Any]]
    base_classes: tuple[int, ...]  # Labels of the setting's base classes, also for joint training.
    stages: tuple[Stage, ...]
    folder: Path

    @property
    def steps(self) -> tuple[int, int]:
        """Number of steps of stage 1, and of all later stages together."""
        training = self.config['training']
        later = sum(len(stage.current) for stage in self.stages[1:])
        return training['base_steps'], later * training['steps_per_class']


def make_run(
    setting: str, config: ConfigDict, variant: Variant, seed: int, num_classes: int, workdir: Path
) -> Run:
    """The run of a variant with a seed.

    Args:
        setting: name of the config file.
        config: config that the variant changes; it is not modified.
        variant: the changes to make.
        seed: random seed.
        num_classes: number of classes of the data set.
        workdir: folder of the sweep.

    Raises:
        InputError: a config key is unknown, or of another method, or a value is invalid.
    """
    before, config = flat(config.to_dict(), GROUPS), copy.deepcopy(config)
    config.update_from_flattened_dict(dict(variant.changes))
    after = flat(config.to_dict(), GROUPS)
    changes = [f'{key}={after[key]}' for key in variant.changes if after[key] != before[key]]
    if variant.name and changes:
        changes = [variant.name]
    base_classes = planned_stages(config.protocol, num_classes)[0].current
    if variant.joint:
        changes.append('joint')
        later = num_classes - config.protocol.base
        config.training.base_steps += later * config.training.steps_per_class
        config.protocol.base = num_classes
    config.training.seed = seed
    resolved = resolve(config.to_dict(), variant.changes)
    from_config(resolved)
    return Run(
        setting=setting,
        variant=variant,
        seed=seed,
        config=resolved,
        base_classes=base_classes,
        stages=planned_stages(config.protocol, num_classes),
        folder=workdir / '+'.join([variant.config_name(setting), *changes, f'seed={seed}']),
    )


def planned_stages(protocol: ConfigDict, num_classes: int) -> tuple[Stage, ...]:
    """The stages of a protocol on a data set with `num_classes` classes."""
    return ProtocolSettings(**protocol).stages(num_classes)


def execution_order(runs: Sequence[Run]) -> list[Run]:
    """Runs sorted by seed and setting; within them, the largest query bank first.

    A run can start from the first stage of a run with a bank that is as large or larger.
    """
    settings_in_order = list(dict.fromkeys(run.setting for run in runs))
    seeds = list(dict.fromkeys(run.seed for run in runs))
    return sorted(
        runs,
        key=lambda run: (
            seeds.index(run.seed),
            settings_in_order.index(run.setting),
            -first_stages.memory_size(run.config),
        ),
    )


def finish(runs: Sequence[Run], workdir: Path) -> Iterator[tuple[Run, dict]]:
    """Trains every run that is not finished; yields each run with its results.

    Raises:
        InputError: the folder of a run holds a run of another config.
    """
    for position, run in enumerate(runs, start=1):
        results = finished(run)
        if results is None:
            title = f'{run.setting}, {run.variant.label}, seed {run.seed}'
            print(f'\n== run {position} of {len(runs)}: {title}; in {run.folder}', flush=True)
            config = copy.deepcopy(run.config)
            config['training']['init_from'] = _starting_point(run, workdir)
            with record_provenance(run.folder):
                results = main.run(config, str(run.folder))
        yield run, results


def finished(run: Run) -> dict | None:
    """The results of a run; None unless all its stages are trained and evaluated.

    Raises:
        InputError: the folder holds a run of another config.
    """
    recorded = recorded_config(run.folder)
    if recorded is None:
        return None
    difference = config_difference(
        recorded,
        with_defaults(run.config),
        may_change=(*UNSCORED, 'training.init_from'),
    )
    if difference:
        raise InputError(
            f'{run.folder} holds a run of another config: {difference}; choose another --workdir.'
        )
    path = run.folder / 'results.json'
    results = read_json(path, dict) if path.is_file() else {'stages': []}
    # A folder may be started with other evaluation settings; what was scored before keeps its own.
    for report in results['stages']:
        known = report.get('settings', {})
        now = {key: value for key, value in recorded['evaluation'].items() if key in known}
        if different := different_settings(report, {'settings': now}, 'now'):
            raise InputError(
                f'{run.folder}: stage {report["stage"]} was scored with {different}; choose '
                'another --workdir.'
            )
    return results if len(results['stages']) == len(run.stages) else None


def _starting_point(run: Run, workdir: Path) -> str:
    """Value of init_from: as configured, else of the interrupted run, else a shared stage 1."""
    if run.config['training']['init_from']:
        return run.config['training']['init_from']
    recorded = recorded_config(run.folder)
    if recorded is not None:
        return recorded['training']['init_from']
    stage = first_stages.find(run.config, workdir)
    return str(first_stages.adapt(stage, run.config, run.folder.name)) if stage else ''


def cost(runs: Sequence[Run], workdir: Path) -> str:
    """A text table of what remains to be trained: steps of stage 1 and of later stages, and hours.

    Hours are estimated from the steps per second of earlier runs of the setting in this folder, and
    do not include evaluation; '-' if there is no such run.
    """
    lines = [f'{"stage 1":>9}{"later":>9}{"hours":>8}  run']
    shared, totals = [], np.zeros(2)
    for run in runs:
        (first, later), note = run.steps, ''
        key, init_from = (
            first_stages.first_stage_key(run.config),
            run.config['training']['init_from'],
        )
        if finished(run) is not None:
            first, later, note = 0, 0, ' (finished)'
        elif init_from:
            first, note = 0, f' (starts from {init_from})'
        elif key in shared or first_stages.find(run.config, workdir):
            first, note = 0, ' (shares stage 1)'
        shared.append(key)
        rates = _rates(run.folder.name.partition('+')[0], workdir)
        hours = first / rates[0] / 3600 + later / rates[1] / 3600
        totals += first + later, hours
        lines.append(f'{first:9,}{later:9,}{_hours(hours)}  {run.folder.name}{note}')
    steps, hours = totals
    lines.append(f'{int(steps):18,}{_hours(hours)}  {len(runs)} runs')
    return '\n'.join(lines)


def _hours(hours: float) -> str:
    return f'{"-":>8}' if np.isnan(hours) else f'{hours:8.2f}'


def _rates(config_name: str, workdir: Path) -> tuple[float, float]:
    """Median steps per second of a config's runs in stage 1 and in later stages, or NaN."""
    rates = ([], [])
    for path in workdir.glob(f'{config_name}+*/metrics.jsonl'):
        for record in read_metrics(path):
            if record.get('steps_per_second'):
                rates[record['stage'] > 1].append(record['steps_per_second'])
    return tuple(float(np.median(found)) if found else np.nan for found in rates)
