"""Variants of a setting as finished runs: named, started, continued, and never trained twice.

A run is a config. Its folder is named by the config's file and by what was changed, so experiments
that share a folder share their runs and first stages. All of them are ordinary runs of
`simcis_jax.main`, so an interrupted sweep goes on where it stopped.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import first_stages
from experiments.provenance import recorded
from simcis_jax import main, settings
from simcis_jax.continual.stages import Stage, make_stages
from simcis_jax.data.category_list import read_json
from simcis_jax.errors import InputError
from simcis_jax.training.workdir import MAY_CHANGE, first_difference


@dataclasses.dataclass(frozen=True)
class Variant:
    """A row of a table."""

    label: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # Dotted config keys.
    joint: bool = False  # All classes at once, for as many steps as all stages together.
    name: str = ''  # Of its folders, where the changes are too long for it.


@dataclasses.dataclass(frozen=True)
class Run:
    """A variant of a setting with a seed."""

    setting: str  # Name of the config.
    variant: Variant
    seed: int
    config: dict[str, dict[str, Any]]
    base_classes: tuple[int, ...]  # Labels of the setting's first stage, also in joint training.
    stages: tuple[Stage, ...]
    folder: Path

    @property
    def steps(self) -> tuple[int, int]:
        """Steps of the first stage, and of all later ones together."""
        training = self.config['training']
        later = sum(len(stage.current) for stage in self.stages[1:])
        return training['base_steps'], later * training['steps_per_class']


def make_run(
    setting: str, config: ConfigDict, variant: Variant, seed: int, num_classes: int, workdir: Path
) -> Run:
    """The run of a variant.

    Args:
        setting: name of the config.
        config: of the setting; not changed.
        variant: what to change.
        seed: of the run.
        num_classes: of the data set.
        workdir: folder of the sweep.

    Raises:
        InputError: a value is unknown or impossible.
    """
    config = copy.deepcopy(config)
    before = config.to_dict()
    config.update_from_flattened_dict(dict(variant.changes))
    after, named = config.to_dict(), [key.split('.') for key in variant.changes]
    changes = [f'{g}.{k}={after[g][k]}' for g, k in named if after[g][k] != before[g][k]]
    if variant.name and changes:
        changes = [variant.name]
    base_classes = planned_stages(config.protocol, num_classes)[0].current
    if variant.joint:
        changes.append('joint')
        later = num_classes - config.protocol.base
        config.training.base_steps += later * config.training.steps_per_class
        config.protocol.base = num_classes
    config.training.seed = seed
    settings.from_config(config.to_dict())
    return Run(
        setting=setting,
        variant=variant,
        seed=seed,
        config=config.to_dict(),
        base_classes=base_classes,
        stages=planned_stages(config.protocol, num_classes),
        folder=workdir / '+'.join([setting, *changes, f'seed={seed}']),
    )


def planned_stages(protocol: ConfigDict, num_classes: int) -> tuple[Stage, ...]:
    """The stages that a config's protocol makes of a data set."""
    return make_stages(
        num_classes,
        base=protocol.base,
        increment=protocol.increment,
        added=protocol.added,
        order=protocol.order,
    )


def in_order(runs: Sequence[Run]) -> list[Run]:
    """Seed by seed, setting by setting; first what can lend its first stage to all others."""
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
    """Every run with its results; what is not finished is trained first.

    Raises:
        InputError: a folder holds a run of another config.
    """
    for position, run in enumerate(runs, start=1):
        results = finished(run)
        if results is None:
            what = f'{run.setting}, {run.variant.label}, seed {run.seed}'
            print(f'\n== {position} of {len(runs)}: {what}; in {run.folder}', flush=True)
            config = copy.deepcopy(run.config)
            config['training']['init_from'] = _starting_point(run, workdir)
            with recorded(run.folder):
                results = main.run(config, str(run.folder))
        yield run, results


def finished(run: Run) -> dict | None:
    """The results of a run that trained and evaluated all its stages; None if it has not yet.

    Raises:
        InputError: the folder holds a run of another config.
    """
    if not (run.folder / 'config.json').is_file():
        return None
    difference = first_difference(
        read_json(run.folder / 'config.json', dict),
        json.loads(json.dumps(run.config)),
        may_change=(*MAY_CHANGE, 'training.init_from'),
    )
    if difference:
        raise InputError(
            f'{run.folder} holds a run of another config: {difference}; choose another --workdir.'
        )
    path = run.folder / 'results.json'
    results = read_json(path, dict) if path.is_file() else {'stages': []}
    return results if len(results['stages']) == len(run.stages) else None


def _starting_point(run: Run, workdir: Path) -> str:
    """The stage a run starts after: the one asked for, the one it began with, or a shared one."""
    if run.config['training']['init_from']:
        return run.config['training']['init_from']
    recorded_config = run.folder / 'config.json'
    if recorded_config.is_file():
        return read_json(recorded_config, dict)['training']['init_from']
    stage = first_stages.find(run.config, workdir)
    return str(first_stages.lend(stage, run.config, run.folder.name)) if stage else ''


def cost(runs: Sequence[Run], workdir: Path) -> str:
    """What a sweep will run, as text: steps of the first and of all later stages, and hours.

    Hours are those of training alone, at the rates that runs of the same setting in this folder
    had; '-' where there is none yet.
    """
    lines = [f'{"stage 1":>9}{"later":>9}{"hours":>8}  run']
    lent, totals = [], np.zeros(2)
    for run in runs:
        (first, later), note = run.steps, ''
        key, given = first_stages.first_stage_key(run.config), run.config['training']['init_from']
        if finished(run) is not None:
            first, later, note = 0, 0, ' (finished)'
        elif given:
            first, note = 0, f' (after {given})'
        elif key in lent or first_stages.find(run.config, workdir):
            first, note = 0, ' (shares stage 1)'
        lent.append(key)
        rates = _rates(run.setting, workdir)
        hours = first / rates[0] / 3600 + later / rates[1] / 3600
        totals += first + later, hours
        lines.append(f'{first:9,}{later:9,}{_hours(hours)}  {run.folder.name}{note}')
    steps, hours = totals
    lines.append(f'{int(steps):18,}{_hours(hours)}  {len(runs)} runs')
    return '\n'.join(lines)


def _hours(hours: float) -> str:
    return f'{"-":>8}' if np.isnan(hours) else f'{hours:8.2f}'


def _rates(setting: str, workdir: Path) -> tuple[float, float]:
    """Median steps a second of a setting's runs in the first and in later stages, or NaN."""
    rates = ([], [])
    for path in workdir.glob(f'{setting}+*/metrics.jsonl'):
        for line in path.read_text().splitlines():
            record = json.loads(line) if line.endswith('}') else {}
            if record.get('steps_per_second'):
                rates[record['stage'] > 1].append(record['steps_per_second'])
    return tuple(float(np.median(found)) if found else np.nan for found in rates)
