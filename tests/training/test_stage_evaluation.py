"""Evaluations inside a stage of which the process is killed between any two writes."""

import dataclasses
import json
import shutil
import time
import types

import evaluated
import numpy as np
import pytest
from tiny import tiny_config

from simcis_jax.continual.stages import Stage
from simcis_jax.evaluation import counts_log
from simcis_jax.evaluation.counts_log import CountsLog
from simcis_jax.evaluation.evaluator import Evaluator
from simcis_jax.settings.keys import EvaluationSettings
from simcis_jax.settings.validated import from_config
from simcis_jax.training import manifest
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.metrics_log import MetricsLog, read_metrics
from simcis_jax.training.stage_evaluation import EvaluationInStage, StageEvaluation
from simcis_jax.training.stage_folder import StageFolder
from simcis_jax.training.workdir import Workdir

STAGE = Stage(0, (), evaluated.GROUPS['all'])
WRONG = {2: 1, 4: 0, 6: 2}  # Evaluated step -> number of classes with a wrong colour.
WRITES = (
    (CountsLog, 'close'),  # Writes a file, here for every image.
    (StageCheckpoints, 'save_weights'),
    (manifest, 'write'),  # In the background, before a checkpoint gets its name.
    (MetricsLog, 'write'),
    (StageFolder, 'remove_counts'),
)


def state_of(step):
    colors = np.array(evaluated.CATEGORIES.colors, np.float32)
    colors[: WRONG[step]] = 0
    return types.SimpleNamespace(params={'colors': colors}, memory=None)


@pytest.fixture(scope='module')
def evaluation():
    """What the evaluations share, but for the work directory."""
    changes = {'training.keep_best': 'miou', 'evaluation.every': 2, 'evaluation.num_images': 2}
    settings = from_config(tiny_config(**changes).to_dict())
    scoring = EvaluationSettings(**evaluated.SETTINGS, tasks=('semantic',))
    evaluator = Evaluator(evaluated.ColorNetwork(), evaluated.CATEGORIES, scoring)
    return StageEvaluation(evaluator, evaluated.Rectangles(), (STAGE,), settings, Workdir('', {}))


def go_on(evaluation, root, first=0):
    """Evaluates as a run does that goes on from the state after step `first`."""
    workdir = Workdir(root, {})
    evaluation = dataclasses.replace(evaluation, workdir=workdir)
    records = workdir.records(STAGE.number, first)
    with workdir.metrics_log(STAGE.number, first) as log:
        in_stage = EvaluationInStage(evaluation, STAGE, 7, log, records)
        for step in WRONG:
            if step >= first and in_stage.is_due(step):
                in_stage.evaluate(step, state_of(step))


def outcome(root):
    """The log, and the names and weights of what is kept."""
    folder = root / 'stage_1'
    with StageCheckpoints(folder / 'best') as kept:
        weights = kept.read('params')['colors'].tolist()
    names = sorted(path.name for path in (folder / 'best').iterdir())
    return read_metrics(root / 'metrics.jsonl'), names, weights


@pytest.fixture(scope='module')
def killed(evaluation, tmp_path_factory):
    """The folder of undisturbed evaluations, and what kills would have left of it.

    The latter are copies from just before every write: (write, step that is evaluated, folder).
    """
    root, copies, steps = tmp_path_factory.mktemp('evaluations'), [], []
    (root / 'run').mkdir()

    def copying(function, name):
        def copy_and_call(*arguments):
            copies.append((name, steps[-1], root / f'{len(copies)}'))
            shutil.copytree(root / 'run', copies[-1][-1])
            return function(*arguments)

        return copy_and_call

    evaluate = EvaluationInStage.evaluate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            EvaluationInStage,
            'evaluate',
            lambda self, step, state: steps.append(step) or evaluate(self, step, state),
        )
        patch.setattr(counts_log, 'SECONDS', 0.0)
        for owner, name in WRITES:
            patch.setattr(owner, name, copying(getattr(owner, name), name))
        go_on(evaluation, root / 'run')
    return root / 'run', copies


@pytest.mark.slow
def test_a_kill_before_any_write_changes_no_score_and_no_kept_weights(evaluation, killed):
    undisturbed, copies = killed
    expected = outcome(undisturbed)
    assert not (undisturbed / 'stage_1' / 'counts').exists()
    assert [record['step'] for record in expected[0]] == list(WRONG)
    assert expected[1] == ['4']
    assert {name for name, _, _ in copies} == {name for _, name in WRITES}
    for name, step, folder in copies:
        go_on(evaluation, folder, first=step)
        assert outcome(folder) == expected, f'killed before {name} in step {step}'


def test_weights_whose_score_is_not_in_the_log_are_replaced(evaluation, killed, tmp_path):
    """As when the newest checkpoint is damaged, and its steps are repeated with rounding errors."""
    shutil.copytree(killed[0], tmp_path / 'run')
    best = tmp_path / 'run' / 'stage_1' / 'best'
    shutil.copytree(best / '4', best / '8')
    go_on(evaluation, tmp_path / 'run', first=2)
    assert outcome(tmp_path / 'run') == outcome(killed[0])


@pytest.mark.parametrize(
    'changes, best',
    [
        ({'semantic_threshold': 0.9}, '6'),
        ({'num_images': 3}, '6'),
        ({'tasks': ('panoptic', 'semantic'), 'num_pictures': 0}, '4'),  # No other scores of mIoU.
    ],
)
def test_only_scores_made_with_the_same_settings_are_compared(
    evaluation, killed, tmp_path, capsys, changes, best
):
    run = shutil.copytree(killed[0], tmp_path / 'run')
    settings = evaluation.settings
    scoring = dataclasses.replace(settings.evaluation, **changes)
    changed = dataclasses.replace(
        evaluation, settings=dataclasses.replace(settings, evaluation=scoring)
    )
    go_on(changed, run, first=4)
    records, names, _ = outcome(run)
    assert names == [best] and [record['step'] for record in records] == [2, 4, 6]
    before, after = (records[i]['settings'] for i in (1, 2))
    for name, value in changes.items():
        if name != 'num_pictures':
            old = getattr(settings.evaluation, name)
            assert (before[name], after[name]) == tuple(json.loads(json.dumps((old, value))))
    message = 'the best weights so far, of step 4, were scored with evaluation.'
    (name, value), *_ = changes.items()
    old = f'{name}={getattr(settings.evaluation, name)} (now: {value})'
    assert capsys.readouterr().out.count(message + old) == (best == '6')
    go_on(changed, run, first=6)
    assert message not in capsys.readouterr().out


class ThreeImages:
    """Images of classes 0, 0 and 1, and one without a class."""

    def __len__(self):
        return 4

    def classes_of(self, index):
        return frozenset([[0], [0], [1, 2], []][index])


@pytest.mark.parametrize(
    'every, num_images, stage, step, images',
    [
        (0, 0, 0, 0, 2 + 3),  # At the ends of both stages.
        (0, 0, 1, 3, 3),
        (2, 0, 0, 0, 3 * 2 + 2 + 1 * 3 + 3),  # After steps 2, 4 and 6 of 7, and 2 of 4.
        (2, 0, 0, 4, 1 * 2 + 2 + 1 * 3 + 3),
        (2, 1, 0, 4, 1 * 1 + 2 + 1 * 1 + 3),
        (2, 0, 1, 2, 3),
        (9, 0, 0, 5, 2 + 3),
    ],
)
def test_the_time_of_evaluations_to_come(evaluation, every, num_images, stage, step, images):
    settings = evaluation.settings
    changed = dataclasses.replace(
        settings,
        training=dataclasses.replace(settings.training, base_steps=7, steps_per_class=4),
        evaluation=dataclasses.replace(settings.evaluation, every=every, num_images=num_images),
    )
    stages = Stage(0, (), (0,)), Stage(1, (0,), (1,))
    measured = types.SimpleNamespace(seconds_per_image=None)
    evaluation = dataclasses.replace(
        evaluation, evaluator=measured, source=ThreeImages(), stages=stages, settings=changed
    )
    assert evaluation.seconds_to_come(stages[stage], step) == 0
    measured.seconds_per_image = 0.5
    assert evaluation.seconds_to_come(stages[stage], step) == 0.5 * images


def test_the_images_of_an_evaluation_are_those_whose_time_is_estimated(evaluation, tmp_path):
    evaluation = dataclasses.replace(evaluation, workdir=Workdir(tmp_path, {}))
    evaluation.at_end(STAGE, state_of(4))
    start = time.monotonic()
    evaluation.at_end(STAGE, state_of(4))
    seconds = time.monotonic() - start
    estimated = evaluation.evaluator.seconds_per_image * len(evaluation.source)
    assert 0 < estimated <= seconds * 7 / 6  # All but the first of seven images are measured.
    last = evaluation.seconds_to_come(STAGE, 100)
    assert last == pytest.approx(estimated)
