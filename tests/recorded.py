"""Training steps recorded from the published code: inputs, random draws and settings."""

import dataclasses

import golden_weights
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from simcis_jax.continual.pseudo_labels import merge_targets
from simcis_jax.losses.segmentation import Matches
from simcis_jax.methods.simcis import SimCIS
from simcis_jax.methods.step import MATCHING, SAMPLING, Step
from simcis_jax.types import StageArrays, Targets, VirtualQueries

NUM_CLASSES, SLOTS = 150, 8
SETS = ('interm', *(f'aux{i}' for i in range(8)), 'main')  # In the order of our decoder outputs.
TERMS = {'class': 'ce', 'mask': 'mask', 'dice': 'dice', 'box': 'bbox', 'giou': 'giou'}
NUM_POINTS = 196
NUM_UNCERTAIN = 147  # Three quarters of them.


def loss_name(name, term):
    """The published name of a term of a decoder output."""
    if name == 'interm':
        return f'interm_loss_{TERMS[term]}'
    return f'loss_{TERMS[term]}' + (f'_{name[-1]}' if name != 'main' else '')


def ground_truth(golden):
    """The ground truth as targets [2, T], without pseudo-labels."""
    maps, labels, boxes = [], [], []
    for image in (0, 1):
        masks = np.unpackbits(golden[f'gt/b{image}/masks_packed'], axis=-1)
        slots = np.arange(1, len(masks) + 1)[:, None, None]
        assert masks.sum(axis=0).max(initial=0) <= 1
        maps.append((masks * slots).sum(axis=0).astype(np.uint8))
        missing = SLOTS - len(masks)
        labels.append(np.pad(golden[f'gt/b{image}/labels'], (0, missing), constant_values=-1))
        low, high = np.split(golden[f'gt/b{image}/boxes_xyxy'], 2, axis=-1)
        size = np.array([160, 128], np.float32)
        box = np.concatenate([(low + high) / 2 / size, (high - low) / size], axis=-1)
        boxes.append(np.pad(box, ((0, missing), (0, 0))))
    return Targets(*map(jnp.asarray, map(np.stack, (maps, labels, boxes))), jnp.zeros(2, jnp.int32))


def slots_of(golden, image, name='main'):
    """Our slot of every published target; the published code puts pseudo-labels first, we last."""
    num_truth = len(golden[f'gt/b{image}/labels'])
    num_targets = golden[f'assign/{name}/b{image}'].shape[1]  # Every target is matched.
    return np.roll(np.arange(num_targets), num_targets - num_truth)


def matched_queries(golden, name):
    """The query [2, T] of every slot in a recorded assignment; 0 for padding."""
    queries = np.zeros((2, SLOTS), np.int32)
    for image in (0, 1):
        rows, columns = golden[f'assign/{name}/b{image}']
        queries[image, slots_of(golden, image, name)[columns]] = rows
    return queries


def recorded_key(golden):
    """A random key with which a train step draws the points of the recorded step."""
    num_targets = sum(len(golden[f'targets/b{image}/labels']) for image in (0, 1))
    matching = np.zeros((2, len(SETS), NUM_POINTS, 2), np.float32)
    candidates = np.zeros((2, len(SETS), SLOTS, 3 * NUM_POINTS, 2), np.float32)
    uniform = np.zeros((2, len(SETS), SLOTS, NUM_POINTS - NUM_UNCERTAIN, 2), np.float32)
    for i, name in enumerate(SETS):
        over, rand = (
            golden_weights.recorded_points(f'{kind}/{name}', (num_targets, *array.shape[3:]))
            for kind, array in (('over', candidates), ('rand', uniform))
        )
        pair = 0  # Index of a matched pair, ordered by image, then query.
        for image in (0, 1):
            key = f'match/{name}/b{image}'
            matching[image, i] = golden_weights.recorded_points(key, (NUM_POINTS, 2))
            for slot in slots_of(golden, image, name)[golden[f'assign/{name}/b{image}'][1]]:
                candidates[image, i, slot], uniform[image, i, slot] = over[pair], rand[pair]
                pair += 1
    return key_of_draws(matching, candidates, uniform)


def key_of_draws(matching, candidates, uniform):
    """A random key with which the losses draw these points.

    The key data is the sequence of values folded in: step, stream, image, then decoder output, slot
    and draw where there are several. Every draw is looked up by this sequence.

    Args:
        matching: [B, L, P, 2] points of the matching.
        candidates: [B, L, T, 3 P, 2] points among which the uncertain ones are chosen.
        uniform: [B, L, T, P / 4, 2] further points.
    """
    tables = {
        matching.shape[1:]: (MATCHING, matching),
        candidates.shape[3:]: (SAMPLING, candidates),
        uniform.shape[3:]: (SAMPLING, uniform),
    }

    def fold_in(key, data):
        return key.at[key[0] + 1].set(jnp.asarray(data, key.dtype)).at[0].add(1)

    def split(key, shape):
        children = jax.vmap(lambda i: fold_in(key, i))(jnp.arange(np.prod(shape)))
        return children.reshape(*shape, -1)

    def random_bits(key, bit_width, shape):
        assert bit_width == 32
        stream, table = tables[shape]
        indices = tuple(key[3 : 3 + table.ndim - len(shape)])
        # JAX makes a uniform float32 of the highest bits.
        bits = (jnp.asarray(table)[indices] * 2.0**24).astype(jnp.uint32) << 8
        return jnp.where(key[2] == stream, bits, 0)

    implementation = jax.extend.random.define_prng_impl(
        key_shape=(8,),
        seed=lambda seed: jnp.zeros(8, jnp.uint32),
        split=split,
        random_bits=random_bits,
        fold_in=fold_in,
        name='recorded',
        tag='recorded',
    )
    return jax.random.key(0, impl=implementation)


@dataclasses.dataclass(frozen=True)
class Case:
    """One recorded step."""

    file: str
    backbone: str = 'resnet50'
    salt: str = 'S6:'
    teacher_salt: str | None = None
    num_new: int = 10  # Classes of stage 2.
    settings: dict = dataclasses.field(default_factory=dict)  # Of the method.
    class_weight: float = 4.0
    updates: bool = True  # Whether gradients are recorded.
    pixel_decoder_precision: str = 'highest'


@dataclasses.dataclass(frozen=True)
class PublishedSimCIS(SimCIS):
    """Uses the recorded virtual queries and the published choice of targets."""

    drawn: VirtualQueries | None = None

    def virtual_queries(self, step):
        """The recorded virtual queries, if there are any."""
        return self.drawn

    def pseudo_labelled(self, step):
        """Pseudo-labels of all classes except the first unseen one, as in the published code."""
        past = step.stage.past
        return merge_targets(
            step.teacher,
            step.batch.targets,
            jnp.ones_like(past),
            rule=self.rule,
            rejected=jnp.arange(len(past)) == jnp.sum(past),
        )

    def targets(self, step):
        """No pseudo-labels for an image with ground truth of a class outside the stage."""
        truth = step.batch.targets
        if step.teacher is None:
            return truth
        outside = (truth.valid & ~step.stage.current[truth.labels]).any(axis=1)
        return jax.tree.map(
            lambda truth, merged: jax.vmap(jnp.where)(outside, truth, merged),
            truth,
            self.pseudo_labelled(step),
        )


def stage_of(case):
    """The stage of a recorded step."""
    classes = np.arange(NUM_CLASSES)
    num_past = 0 if case.teacher_salt is None else 100
    num_seen = 100 if case.teacher_salt is None else 100 + case.num_new
    return StageArrays(
        past=jnp.asarray(classes < num_past),
        current=jnp.asarray((classes >= num_past) & (classes < num_seen)),
        num_steps=jnp.array(1000),
        learning_rate=jnp.float32(1e-4 if case.teacher_salt is None else 5e-5),
    )


def drawn_queries(golden):
    """The recorded virtual queries; the queries of the recorded bank are random numbers."""
    if 'vq/targets' not in golden:
        return None
    rng = np.random.default_rng([20250, 2])
    bank = rng.standard_normal((100, 3, 256)).astype(np.float32)
    labels = golden['vq/targets']
    return VirtualQueries(jnp.asarray(bank[labels, golden['vq/bank_index']]), jnp.asarray(labels))


def stored(method, student, targets, golden):
    """What the recorded step stores in the bank, except virtual queries that were matched."""
    matches = Matches(jnp.asarray(matched_queries(golden, 'store'))[None], jnp.zeros((), jnp.int32))
    step = Step(student=student, targets=targets, matches=matches)
    features, labels = map(np.asarray, method.store(step))
    images, queries = np.nonzero(labels >= 0)  # Ordered by image, then query.
    return {
        'store/image': images,
        'store/query': queries,
        'store/class': labels[images, queries],
        'store/feat': features[images, queries],
    }
