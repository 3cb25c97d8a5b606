"""Recorded training steps computed by this code, with the arrays under their published names.

Weights, images, random points and drawn virtual queries are the recorded ones; teacher,
pseudo-labels, matches, losses, gradients and the AdamW update are computed here.
"""

import functools
from types import SimpleNamespace
from unittest import mock

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import parity
import published
from recorded import (
    NUM_POINTS,
    SETS,
    Case,
    PublishedSimCIS,
    drawn_queries,
    ground_truth,
    loss_name,
    recorded_key,
    slots_of,
    stage_of,
    stored,
)

from simcis_jax.continual import virtual_query
from simcis_jax.losses.matcher import matching_cost
from simcis_jax.losses.point_sampling import sample_features, sample_slots
from simcis_jax.losses.segmentation import PointSampling, match_targets, segmentation_losses
from simcis_jax.losses.weights import LossWeights
from simcis_jax.methods.base import Method
from simcis_jax.methods.step import MATCHING, SAMPLING, Step
from simcis_jax.types import Batch

SAMPLED = PointSampling(num_points=NUM_POINTS)

TEACHER = dict(teacher_salt='S13:')
CASES = (
    Case('train_t1_pan'),
    Case('train_t1_empty_gt', updates=False),
    Case('train_t2_collect', salt='S13:', **TEACHER, updates=False),
    Case('train_t2_pan_100-10', **TEACHER),
    Case('train_t2_pan_100-5', **TEACHER, num_new=5, settings=dict(decoder_kl_weight=2.0)),
    Case(
        'train_t2_sem_100-10',
        backbone='resnet101',
        **TEACHER,
        class_weight=2.0,
        settings=dict(
            decoder_kl_weight=2.0,
            decoder_kl_temperature=4.0,
            merge_classes=True,
            pseudo_label_score=0.0,
        ),
    ),
)


def load(case):
    """The golden file, with its lists split into named values, such as loss/raw/NAME."""
    golden = published.without_virtual_query_masks(golden_weights.load(case.file))
    if 'input/images' not in golden:
        golden['input/images'] = golden_weights.load('train_t1_pan')['input/images']
    for names, lists in (
        ('loss/names', ['loss/raw', 'loss/weighted']),
        ('grad/names', ['grad/norm']),
        ('grad/slice_names', ['grad/slices', 'opt/update', 'opt/update_norm']),
    ):
        for name in lists if names in golden else []:
            values = golden.pop(name)
            golden |= {
                f'{name}/{key.decode()}': value
                for key, value in zip(golden[names], values, strict=True)
            }
    # The published code also stored matched virtual queries, which are not matched here.
    real = golden['store/query'] < published.NUM_QUERIES
    for name in parity.names(golden, 'store/'):
        golden[name] = golden[name][real]
    return golden


def prepare(case):
    """The inputs of a recorded step."""
    golden = load(case)
    image, size = published.padded(golden['input/images'])
    drawn = drawn_queries(golden)
    return SimpleNamespace(
        case=case,
        golden=golden,
        image=image,
        size=size,
        drawn=drawn,
        model=published.network(
            case.backbone, pixel_decoder_precision=case.pixel_decoder_precision
        ),
        method=PublishedSimCIS(**case.settings, drawn=drawn),
        stage=stage_of(case),
        truth=ground_truth(golden),
        weights=LossWeights(classification=case.class_weight),
        key=recorded_key(golden),
    )


@functools.partial(jax.jit, static_argnames=('weights', 'sampling'))
def matches_and_terms(student, targets, key, virtual_labels, weights, sampling):
    """Matches and loss terms, with the random keys of the first train step."""

    def keys(stream):
        step_key = jax.random.fold_in(jax.random.fold_in(key, 0), stream)
        return jax.vmap(lambda row: jax.random.fold_in(step_key, row))(jnp.arange(2))

    matches = match_targets(
        student, targets, keys(MATCHING), weights=weights, num_points=sampling.num_points
    )
    terms = segmentation_losses(
        student,
        targets,
        matches,
        keys(SAMPLING),
        virtual_labels=virtual_labels,
        sampling=sampling,
    )
    return matches, terms


@functools.partial(jax.jit, static_argnames='weights')
def costs(class_logits, mask_logits, boxes, targets, points, weights):
    """Costs [B, Q, T] of one decoder output."""

    def one(points, class_logits, masks, boxes, segment_map, labels, true_boxes):
        mask_logits = sample_features(jnp.moveaxis(masks, 0, -1), points)
        truth = sample_slots(segment_map, points, len(labels))
        return matching_cost(class_logits, mask_logits, boxes, labels, truth, true_boxes, weights)

    segments = targets.segment_map, targets.labels, targets.boxes
    return jax.vmap(one)(points, class_logits, mask_logits, boxes, *segments)


def cost_arrays(start, predictions, arrays, targets):
    """Costs of the matchings for the losses and for the bank, in the published order."""
    found = {}
    for name in (*SETS, 'store'):
        number = SETS.index(name) if name in SETS else -1
        points = [
            golden_weights.recorded_points(f'match/{name}/b{image}', (NUM_POINTS, 2))
            for image in (0, 1)
        ]
        matrix = costs(
            predictions.class_logits[number],
            arrays[f'dec/{published.SETS[number]}/masks'],
            predictions.boxes[number],
            targets[name == 'store'],
            np.stack(points),
            start.weights,
        )
        for image in (0, 1):
            slots = slots_of(start.golden, image, name)
            found[f'cost/{name}/b{image}'] = np.asarray(matrix)[image][:, slots]
    return found


def assignment_arrays(start, matches):
    """Matched pairs (queries, targets), sorted by query as in the published code."""
    found = {}
    for number, name in enumerate(SETS):
        for image in (0, 1):
            queries = matches.queries[number, image][slots_of(start.golden, image)]
            order = np.argsort(queries)
            found[f'assign/{name}/b{image}'] = np.stack([queries[order], order])
    return found


def target_arrays(start, targets, pseudo_labelled):
    """The targets of the losses, and all pseudo-labels, used or not."""
    found = {}
    for image in (0, 1):
        slots = slots_of(start.golden, image)
        num_truth = int(start.truth.valid[image].sum())
        num_merged = int(pseudo_labelled.valid[image].sum())
        pseudo = np.arange(num_truth, num_merged)
        masks = pseudo_labelled.segment_map[image] == pseudo[:, None, None] + 1
        found |= {
            f'targets/b{image}/labels': targets.labels[image][slots],
            f'targets/b{image}/boxes': targets.boxes[image][slots],
            f'psd/b{image}/labels': pseudo_labelled.labels[image][pseudo],
            f'psd/b{image}/boxes': pseudo_labelled.boxes[image][pseudo],
            f'psd/b{image}/masks_packed': np.packbits(masks, axis=-1),
        }
    return found


def loss_arrays(start, targets, terms, extra):
    """Every loss, before and after weighting, and their sum."""
    num_targets = int(targets.valid.sum())
    raw, weighted = {}, {}
    for name, values in terms.items():
        weight = getattr(start.weights, 'classification' if name == 'class' else name)
        for prediction, value in zip(SETS, values, strict=True):
            raw[loss_name(prediction, name)] = value / num_targets
            weighted[loss_name(prediction, name)] = weight * value / num_targets
    for name, value in extra.items():
        published_name = {'csl': 'interm_kl_loss', 'decoder_kl': 'kl_loss'}[name]
        raw[published_name] = value / getattr(start.method, f'{name}_weight') / 2  # Images.
        weighted[published_name] = value / 2
    found = {f'loss/raw/{name}': value for name, value in raw.items()}
    found |= {f'loss/weighted/{name}': value for name, value in weighted.items()}
    return found | {'loss/total': sum(weighted.values())}


def extra_terms(start, teacher, student):
    """The terms of the method besides the basic ones, weighted and summed over the images."""
    with mock.patch.object(Method, 'losses', lambda *_: {}):
        terms = start.method.losses(Step(teacher=teacher, student=student))
    return {name: term.weight * term.sum for name, term in terms.items()}


def compute_step(case):
    """A recorded step computed part by part, up to its losses."""
    start = prepare(case)
    image, size = start.image, start.size
    arrays, teacher, positions = {}, None, {}
    targets = pseudo_labelled = start.truth
    if case.teacher_salt is not None:
        params = published.weights(case.teacher_salt, case.backbone)
        teacher, found = published.forward(start.model, params, image, size)
        positions['scored_positions'] = teacher.selection.positions
        arrays |= {
            'teacher/topk': teacher.selection.positions,
            'teacher/interm_logits': teacher.class_logits[0],
            'teacher/pred_logits': teacher.class_logits[-1],
            'teacher/pred_boxes': teacher.boxes[-1],
            'teacher/pred_masks': found['dec/layer8/masks'],
        }
        step = Step(stage=start.stage, batch=Batch(image, start.truth), teacher=teacher)
        merge, choose = map(jax.jit, (start.method.pseudo_labelled, start.method.targets))
        pseudo_labelled, targets = jax.device_get((merge(step), choose(step)))
        arrays['collect/psd_num'] = start.method.statistics(step.replace(targets=targets))
        if start.drawn is not None:
            positions['replay_positions'] = teacher.selection.positions
    arrays |= target_arrays(start, targets, pseudo_labelled)

    params = published.weights(case.salt, case.backbone)
    queries = None if start.drawn is None else start.drawn.queries
    student, found = published.forward(start.model, params, image, size, queries, **positions)
    arrays |= found
    matches, terms = matches_and_terms(
        student,
        targets,
        start.key,
        None if start.drawn is None else start.drawn.labels,
        start.weights,
        SAMPLED,
    )
    replayed = found.get('dec/distill/layer8/logits', np.zeros(1))[None]
    student = student.replace(replayed_class_logits=replayed)
    extra = extra_terms(start, teacher, student)
    arrays |= cost_arrays(start, student, found, (targets, pseudo_labelled))
    arrays |= assignment_arrays(start, matches)
    arrays |= loss_arrays(start, targets, terms, extra)
    arrays |= stored(start.method, student, pseudo_labelled, start.golden)
    if start.drawn is not None:
        counts, past = start.golden['vq/psd_counts'], np.asarray(start.stage.past)
        weights = virtual_query.sampling_weights(counts, past, start.method.sampling_alpha)
        arrays['vq/sample_weights'] = weights[past]
    return SimpleNamespace(**vars(start), arrays=arrays)
