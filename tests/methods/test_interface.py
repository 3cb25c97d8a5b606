"""A method that uses the hooks that no built-in method uses, through a whole run."""

import dataclasses
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from runs import newest_state
from tiny import SMALLEST, tiny_config

from simcis_jax.continual.image_memory import ReplayPool, class_balanced
from simcis_jax.losses.segmentation import Matches
from simcis_jax.methods.base import Method
from simcis_jax.methods.pseudo_label import PseudoLabel
from simcis_jax.methods.step import Step, Term
from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.runtime import parallel
from simcis_jax.settings.validated import from_config
from simcis_jax.training.optimizer import make_optimizer
from simcis_jax.training.train_step import make_train_step
from simcis_jax.training.trainer import Trainer
from simcis_jax.training.workdir import Workdir
from simcis_jax.types import Batch, StageArrays, Targets, TrainState

SMALL = SMALLEST | {'protocol.replay_images': 3}
ALWAYS = 1  # The class that inference predicts.


class ScaledNetwork(Mask2Former):
    """Has a parameter of the method: a factor of all class logits."""

    def setup(self):
        super().setup()
        self.logit_scale = self.param('logit_scale', nn.initializers.ones, ())

    def __call__(self, *arguments, **options):
        predictions = super().__call__(*arguments, **options)
        return predictions.replace(class_logits=predictions.class_logits * self.logit_scale)


@dataclasses.dataclass(frozen=True)
class Everything(PseudoLabel):
    """Later stages train only the heads, towards the teacher's queries and maps."""

    def make_model(self, stages, settings):
        return ScaledNetwork(num_classes=len(stages[-1].seen), **settings)

    def trainable(self, path, stage):
        return stage.number == 1 or path.startswith(('heads/', 'logit_scale'))

    def init_memory(self, num_classes, hidden_dim):
        return {'ended': jnp.zeros((), jnp.int32), 'steps': jnp.zeros((), jnp.int32)}

    def begin_stage(self, state, stage, statistics):
        assert state.opt_state is None and statistics is None
        # New rows of the class head are the mean of the old ones, if there are any.
        head = state.params['heads']['class_head']['dense']
        past = jnp.asarray(stage.past)
        mean = (head['kernel'] * past).sum(axis=1) / jnp.maximum(past.sum(), 1)
        new = jnp.asarray(stage.current) & past.any()
        kernel = jnp.where(new, mean[:, None], head['kernel'])
        params = jax.tree.map(lambda x: x, state.params)
        params['heads']['class_head']['dense'] = {**head, 'kernel': kernel}
        return state.replace(params=params)

    def end_stage(self, state, stage):
        return state.replace(memory=state.memory | {'ended': state.memory['ended'] + 1})

    def totals(self, step):
        kept = () if step.teacher is None else step.teacher.class_logits[-1].max(axis=-1) > 0
        return super().totals(step) | {'kept': jnp.sum(jnp.asarray(kept, jnp.float32))}

    def match(self, step):
        matches = super().match(step)
        return Matches(matches.queries, matches.num_nonfinite + 7)

    def losses(self, step):
        terms, teacher, student = super().losses(step), step.teacher, step.student
        if teacher is not None:
            squares = (teacher.queries[-1] - student.queries[-1]) ** 2
            kept = teacher.class_logits[-1].max(axis=-1) > 0
            terms['queries'] = Term(jnp.where(kept, squares.mean(-1), 0.0).sum(), 0.5, per='kept')
            maps = zip(teacher.features['backbone'], student.features['backbone'], strict=True)
            terms['maps'] = Term(sum(jnp.abs(a - b).sum() for a, b in maps))
        return terms

    def store(self, step):
        return jnp.ones(len(step.rows), jnp.int32)

    def update_memory(self, memory, stored, finite):
        return memory | {'steps': memory['steps'] + jnp.where(finite, stored.sum(), 0)}

    def class_logits(self, predictions, seen):
        return predictions.class_logits[-1].at[..., ALWAYS].set(99.0)

    def replay_order(self, pool):
        return iter(sorted(pool.candidates))


def train(folder, config):
    values = dataclasses.replace(from_config(config), method=Everything())
    with Workdir(folder, config) as workdir:
        trainer = Trainer(values, workdir)
        return trainer, trainer.run()


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The trainer, its results and its folder."""
    folder = tmp_path_factory.mktemp('everything')
    config = tiny_config(**{'method.name': 'pseudo_label'} | SMALL).to_dict()
    return *train(folder, config), folder, config


@pytest.mark.slow
def test_only_the_parameters_of_the_method_are_trained_and_have_moments(run):
    states = [newest_state(run[2], stage) for stage in (1, 2, 3)]
    first, *later = (flatten_dict(state['params'], sep='/') for state in states)
    changed = [{k for k in first if (params[k] != first[k]).any()} for params in later]
    heads = {path for path in first if path.startswith(('heads/', 'logit_scale'))}
    assert changed[0] <= heads and len(changed[1]) > len(heads) / 2
    sizes = [sum(x.size for x in jax.tree.leaves(state['rest']['opt_state'])) for state in states]
    trained = sum(first[path].size for path in heads)
    assert 2 * trained <= sizes[1] <= 2 * trained + 9 and sizes[0] > 4 * sizes[1]


@pytest.mark.slow
def test_a_stage_begins_and_ends_once_with_what_the_method_makes_of_the_state(run):
    memory = newest_state(run[2])['memory']
    assert int(memory['ended']) == 3
    assert int(memory['steps']) == 4 * (6 + 2 * (2 * 2))  # Images.
    logged = [json.loads(line) for line in (run[2] / 'metrics.jsonl').open()]
    assert all(record['nonfinite_costs'] == 7 for record in logged)
    # The frozen backbone gives the maps of the teacher.
    assert all(record['maps'] == 0 for record in logged if record['stage'] > 1)
    assert all(record['queries'] >= 0 for record in logged if record['stage'] > 1)


@pytest.mark.slow
def test_a_resumed_stage_is_not_ended_again(run, tmp_path):
    shutil.copytree(run[2], tmp_path / 'run')
    (tmp_path / 'run' / 'stage_3' / 'evaluation.json').unlink()
    _, results = train(tmp_path / 'run', run[3])
    assert results == run[1]
    assert int(newest_state(tmp_path / 'run')['memory']['ended']) == 3


@pytest.mark.slow
def test_inference_uses_the_class_logits_of_the_method(run):
    per_class = json.loads((run[2] / 'stage_3' / 'evaluation.json').read_text())['per_class']
    names = run[0].categories.names
    scored = {name for name, scores in per_class.items() if scores.get('iou')}
    assert scored <= {names[ALWAYS]}


@pytest.mark.slow
def test_the_method_chooses_the_replayed_images(run):
    trainer = run[0]
    memory = trainer.image_memories[1]
    shown = set(trainer.stages[0].current)
    labels = [set(trainer.train_source.classes_of(i)) for i in range(len(trainer.train_source))]
    assert list(memory) == [i for i, found in enumerate(labels) if found & shown][:3]


def test_by_default_replayed_images_are_balanced():
    kept, new = {3: frozenset({0})}, {4: frozenset({1}), 5: frozenset({1})}
    pool = ReplayPool(None, kept, [new], [0] * 6)
    assert list(Method().replay_order(pool)) == list(class_balanced(kept | new, [0] * 6))


# What nobody reads


class BareNetwork(Mask2Former):
    """Predicts neither queries nor maps."""

    def __call__(self, *arguments, **options):
        predictions = super().__call__(*arguments, **options)
        return predictions.replace(queries=None, features=None)


class Reading(PseudoLabel):
    """Reads the first map."""

    def losses(self, step):
        return super().losses(step) | {'map': Term(step.student.features['backbone'][0].sum())}


def program(network, method):
    """The operations of a later train step with two microbatches, in order."""
    values = from_config(tiny_config(**{'method.name': 'pseudo_label'} | SMALL).to_dict())
    model = network(num_classes=4, **values.model)
    mesh = parallel.make_mesh(1)
    step = make_train_step(
        model,
        method,
        mesh,
        weights=values.weights,
        sampling=values.sampling,
        optimizer=values.optimizer,
        num_microbatches=2,
    )

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    image = array(jnp.uint8, 2, 32, 32, 3)
    params = jax.eval_shape(model.init, jax.random.key(0), image)['params']
    state = TrainState(
        step=array(jnp.int32),
        params=params,
        opt_state=jax.eval_shape(make_optimizer(params, values.optimizer).init, params),
        memory=(),
        key=jax.eval_shape(lambda: jax.random.key(0)),
        skipped=array(jnp.int32),
    )
    targets = Targets(
        segment_map=array(jnp.uint8, 2, 32, 32),
        labels=array(jnp.int32, 2, 5),
        boxes=array(jnp.float32, 2, 5, 4),
        dropped=array(jnp.int32, 2),
    )
    classes = array(bool, 4)
    stage = StageArrays(classes, classes, array(jnp.int32), array(jnp.float32))
    text = step.lower(state, params, Batch(image, targets), stage).as_text()
    return [line.split('=')[-1].split('(')[0].split('"')[0].strip() for line in text.splitlines()]


@pytest.mark.slow
def test_what_no_hook_reads_is_not_in_the_program():
    bare, full = (program(network, PseudoLabel()) for network in (BareNetwork, Mask2Former))
    assert len(full) == len(bare)
    assert len(program(Mask2Former, Reading())) > len(full)


def test_hooks_read_a_step_of_any_stage():
    """A step has a default for every field, so that a hook can be tested with what it reads."""
    step = Step(stage=StageArrays(jnp.zeros(2, bool), jnp.ones(2, bool), 1, 1.0))
    np.testing.assert_array_equal(step.selecting, [True, True])
    assert step.replace(mask_unseen=False).selecting is None
