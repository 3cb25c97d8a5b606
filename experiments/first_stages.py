"""Runs of a sweep share their first stage, because most methods only act from stage 2 on.

Of all runs whose stage 1 has the same settings, one trains it and the others start from its
checkpoint. A run with other evaluation settings or a smaller query bank starts from a copy of the
checkpoint, which is evaluated again and whose bank is truncated. The results do not depend on which
run trained the stage.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simcis_jax.methods import Method, make_method
from simcis_jax.settings.validated import with_defaults
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.stage_folder import StageFolder
from simcis_jax.training.workdir import MAY_CHANGE, config_difference, recorded_config

Config = Mapping[str, Mapping[str, Any]]

# Keys that do not affect stage 1; neither does the group `evaluation`, nor `method` for methods
# that only act later.
UNUSED_IN_STAGE_1 = (
    'protocol.increment',
    'protocol.added',
    'protocol.replay_images',
    'protocol.replay_megabytes',
    'optimizer.later_learning_rate',
    'training.steps_per_class',
    'training.statistics_images',
    'training.init_from',
)
FOLDER = 'first_stages'  # Copies, as TARGET_RUN/SOURCE_RUN/stage_1 in the folder of the sweep.


def first_stage_key(config: Config) -> dict:
    """The part of a config that determines the training of stage 1, with JSON types."""
    unused = {'evaluation'} if method_of(config).changes_first_stage else {'evaluation', 'method'}
    kept = {
        group: {
            key: value
            for key, value in values.items()
            if f'{group}.{key}' not in (*UNUSED_IN_STAGE_1, *MAY_CHANGE)
        }
        for group, values in config.items()
        if group not in unused
    }
    return json.loads(json.dumps(kept))


def method_of(config: Config) -> Method:
    """The method of a run."""
    name = config['method']['name']
    return make_method(name, **config['method'].get(name, {}))


def memory_size(config: Config) -> int:
    """Size of the method's memory for one class and hidden_dim 1; it grows with bank_size."""
    method = method_of(config)
    memory = jax.eval_shape(lambda: method.init_memory(1, 1))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(memory))


def find(config: Config, workdir: Path) -> Path | None:
    """The folder of a finished stage 1 in this sweep that `config` can start from, or None.

    A stage that can be used without a copy is preferred.
    """
    key, size = first_stage_key(config), memory_size(config)
    found = {}
    for path in sorted(workdir.glob('*/config.json')):
        other, stage = recorded_config(path.parent), path.parent / 'stage_1'
        if StageFolder(stage).read_report() is None or first_stage_key(other) != key:
            continue
        if size == 0 or memory_size(other) >= size:
            found.setdefault(_is_usable_unchanged(other, config), stage)
    return found.get(True, found.get(False))


def adapt(stage: Path, config: Config, name: str) -> Path:
    """The folder to start from: `stage` itself if it can be used unchanged, else an adapted copy.

    Args:
        stage: a folder that `find` returned.
        config: config of the run that starts from it.
        name: folder name of that run.
    """
    if _is_usable_unchanged(recorded_config(stage.parent), config):
        return stage
    with StageCheckpoints(stage / 'checkpoints') as checkpoints:
        step, params = checkpoints.latest_step, checkpoints.read('params')
        memory = checkpoints.read('memory') if memory_size(config) else None
    if memory is not None:
        memory = shrink_bank(memory, method_of(config).bank_size)
    target = stage.parent.parent / FOLDER / name / stage.parent.name / 'stage_1'
    with StageCheckpoints(target / 'checkpoints') as checkpoints:
        if checkpoints.latest_step is None:
            checkpoints.save_weights(step, params, memory)
    return target


def _is_usable_unchanged(source: Config, target: Config) -> bool:
    """Whether `target` would have the same scores and memory after stage 1 as `source`."""
    evaluations = [with_defaults(config)['evaluation'] for config in (source, target)]
    same_scores = config_difference(*evaluations, may_change=('num_pictures',)) is None
    return same_scores and memory_size(target) in (0, memory_size(source))


def shrink_bank(memory: Mapping[str, Any], bank_size: int) -> dict[str, Any]:
    """Truncates a query bank to the last `bank_size` queries of every class.

    The result equals a bank of this size that was filled from the start.

    Args:
        memory: a bank with queries [C, K, D], written [C] and counts [C].
        bank_size: number of queries to keep per class, at most K.
    """
    queries, written = np.asarray(memory['queries']), np.asarray(memory['written'])
    num_classes, old_size, hidden_dim = queries.shape
    kept = np.zeros((num_classes, bank_size, hidden_dim), queries.dtype)
    for label, end in enumerate(written):
        last = np.arange(max(0, end - bank_size), end)
        kept[label, last % bank_size] = queries[label, last % old_size]
    return dict(memory) | {'queries': kept}
