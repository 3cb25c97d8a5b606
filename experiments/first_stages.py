"""First stages that several runs of a sweep share: what a method does only matters from stage 2 on.

Of those that agree in all that stage 1 depends on, one run trains it and the others start after it.
Where they only differ in how it is scored, or in how many queries are kept, they start from a copy
that is scored anew and whose query bank is cut down; no number depends on who trained it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simcis_jax.data.category_list import read_json
from simcis_jax.methods import make_method
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.workdir import MAY_CHANGE, StageFolder, first_difference

Config = Mapping[str, Mapping[str, Any]]

# What the first stage knows nothing of, beside the method and the evaluation.
LATER = (
    'protocol.increment',
    'protocol.added',
    'protocol.replay_images',
    'protocol.replay_megabytes',
    'optimizer.later_learning_rate',
    'training.steps_per_class',
    'training.statistics_images',
    'training.init_from',
)
FOLDER = 'first_stages'  # Of a sweep, for copies: BORROWER/LENDER/stage_1.


def first_stage_key(config: Config) -> dict:
    """What of a config decides how its first stage is trained, as JSON has it."""
    kept = {
        group: {
            key: value
            for key, value in values.items()
            if f'{group}.{key}' not in (*LATER, *MAY_CHANGE)
        }
        for group, values in config.items()
        if group not in ('method', 'evaluation')
    }
    return json.loads(json.dumps(kept))


def memory_size(config: Config) -> int:
    """Numbers that the method of a config remembers of one class of hidden_dim 1."""
    method = make_method(**config['method'])
    memory = jax.eval_shape(lambda: method.init_memory(1, 1))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(memory))


def find(config: Config, workdir: Path) -> Path | None:
    """The folder of a finished first stage of this sweep that `config` would train alike.

    One that needs no copy is preferred.
    """
    key, size = first_stage_key(config), memory_size(config)
    found = {}
    for path in sorted(workdir.glob('*/config.json')):
        other, stage = read_json(path, dict), path.parent / 'stage_1'
        if StageFolder(stage).read_report() is None or first_stage_key(other) != key:
            continue
        if size == 0 or memory_size(other) >= size:
            found.setdefault(_fits(other, config), stage)
    return found.get(True, found.get(False))


def lend(stage: Path, config: Config, name: str) -> Path:
    """The folder to start from: `stage` itself where it fits, else a copy that does.

    Args:
        stage: what `find` found.
        config: of the run that borrows.
        name: of this run.
    """
    if _fits(read_json(stage.parent / 'config.json', dict), config):
        return stage
    with StageCheckpoints(stage / 'checkpoints') as checkpoints:
        step, params = checkpoints.latest_step, checkpoints.read('params')
        memory = checkpoints.read('memory') if memory_size(config) else None
    if memory is not None:
        memory = shrink_bank(memory, config['method']['bank_size'])
    target = stage.parent.parent / FOLDER / name / stage.parent.name / 'stage_1'
    with StageCheckpoints(target / 'checkpoints') as checkpoints:
        if checkpoints.latest_step is None:
            checkpoints.save_weights(step, params, memory)
    return target


def _fits(lender: Config, borrower: Config) -> bool:
    """Whether a first stage can be taken as it is, scores and memory included."""
    evaluations = [json.loads(json.dumps(config['evaluation'])) for config in (lender, borrower)]
    same = first_difference(*evaluations, may_change=('num_pictures',)) is None
    return same and memory_size(borrower) in (0, memory_size(lender))


def shrink_bank(memory: Mapping[str, Any], bank_size: int) -> dict[str, Any]:
    """The query bank that rings of `bank_size` would hold: the last queries of every class.

    Args:
        memory: queries [C, K, D], written [C], counts [C] of a bank that is as large or larger.
        bank_size: queries to keep of each class, at most K.
    """
    queries, written = np.asarray(memory['queries']), np.asarray(memory['written'])
    num_classes, old_size, hidden_dim = queries.shape
    kept = np.zeros((num_classes, bank_size, hidden_dim), queries.dtype)
    for label, end in enumerate(written):
        last = np.arange(max(0, end - bank_size), end)
        kept[label, last % bank_size] = queries[label, last % old_size]
    return dict(memory) | {'queries': kept}
