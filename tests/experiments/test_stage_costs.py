"""What a later stage costs and the scores over stages, of a finished run."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import stage_costs
from experiments.sweep import Variant
from simcis_jax.training.checkpointing import StageCheckpoints


@pytest.fixture(scope='module')
def results(run):
    return {run.folder: json.loads((run.folder / 'results.json').read_text())}


def test_scores_over_stages_are_means_over_seeds(run, results, tmp_path):
    better = json.loads(json.dumps(results[run.folder]))
    for report in better['stages']:
        report['pq']['all'] += 3.0
    other = dataclasses.replace(run, seed=1, folder=tmp_path)
    found = stage_costs.scores_over_stages([run, other], results | {tmp_path: better}, 'pq')
    stages = results[run.folder]['stages']
    assert found == {
        'SimCIS': {k: pytest.approx(x['pq']['all'] + 1.5) for k, x in enumerate(stages, start=1)}
    }


def test_a_later_stage_trains_the_parameters_that_have_an_optimizer_state(run):
    with StageCheckpoints(run.folder / 'stage_3' / 'checkpoints') as checkpoints:
        params, rest = checkpoints.read('params'), checkpoints.read('rest')
    trained, total = stage_costs.later_parameters(run)
    assert total == sum(np.size(x) for x in jax.tree.leaves(params))
    # Two moments of every trained parameter, and counters.
    moments = sum(np.size(x) for x in jax.tree.leaves(rest['opt_state']))
    assert 0 <= moments - 2 * trained < 10


def test_the_table_of_costs_and_the_figure_are_written(run, results, tmp_path):
    learned = dataclasses.replace(run, variant=Variant('learned'), folder=tmp_path / 'none')
    text = stage_costs.analyze([run, learned], results, tmp_path)
    (row,) = [line for line in text.splitlines() if line.startswith('| SimCIS')]
    trained, total = stage_costs.later_parameters(run)
    seconds = stage_costs.seconds_per_stage(run)
    cells = [cell.strip() for cell in row.strip('|').split('|')]
    assert cells[1:4] == [f'{trained:,}', f'{total:,}', f'{seconds:.0f}'] and seconds > 0
    assert 'learned' not in text  # It is not finished.
    figure = (tmp_path / 'compare_methods-tiny-stages.svg').read_text()
    assert 'SimCIS' in figure and 'PQ of all classes over the stages' in figure
