"""The parameter updates of recorded training steps, with the arrays under their published names."""

from types import SimpleNamespace

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import published
from recorded import NUM_CLASSES, TERMS
from recorded_steps import SAMPLED, prepare

from simcis_jax.port.torch_weights import to_torch
from simcis_jax.runtime import parallel
from simcis_jax.settings.keys import OptimizerSettings
from simcis_jax.training.optimizer import make_optimizer
from simcis_jax.training.train_step import make_train_step
from simcis_jax.types import Batch, TrainState


def compute_update(case):
    """The result of the complete train step for a recorded step."""
    start = prepare(case)
    before = published.weights(case.salt, case.backbone)
    teacher = None
    if case.teacher_salt is not None:
        teacher = published.weights(case.teacher_salt, case.backbone)
    optimizer = OptimizerSettings()
    train_step = make_train_step(
        start.model,
        start.method,
        parallel.make_mesh(2),
        weights=start.weights,
        sampling=SAMPLED,
        optimizer=optimizer,
        mask_unseen=False,
    )
    params = jax.tree.map(jnp.array, before)  # The step donates its state.
    state = TrainState(
        step=jnp.array(0),
        params=params,
        opt_state=make_optimizer(params, optimizer).init(params),
        memory=start.method.init_memory(NUM_CLASSES, 256),
        key=start.key,
        skipped=jnp.array(0),
    )
    batch = Batch(jnp.asarray(start.image), start.truth)
    state, metrics = jax.device_get(train_step(state, teacher, batch, start.stage))
    before, after = to_torch(before), to_torch(state.params)
    clipped = published_gradients(state, optimizer)
    norm = float(np.sqrt(sum(np.sum(x.astype(np.float64) ** 2) for x in clipped.values())))
    arrays = {
        'loss/total': metrics['total'],
        'grad/global_norm': metrics['gradient_norm'],
        'opt/clipped_global_norm': norm,
        'opt/lr_base': metrics['learning_rate'],
    }
    for name in ('class', 'mask', 'dice', 'box', 'giou'):
        arrays[f'loss/raw/loss_{TERMS[name]}'] = metrics[name]
    for name, theirs in (('csl', 'interm_kl_loss'), ('decoder_kl', 'kl_loss')):
        if name in metrics:
            arrays[f'loss/weighted/{theirs}'] = metrics[name]
    scale = metrics['gradient_norm'] / optimizer.clip_norm
    for key in start.golden['grad/names'].tolist():
        gradient = clipped[key.decode()] * scale
        arrays[f'grad/norm/{key.decode()}'] = np.linalg.norm(gradient)
    for key in start.golden['grad/slice_names'].tolist():
        key = key.decode()
        change = after[key].astype(np.float64) - before[key]
        arrays[f'grad/slices/{key}'] = slice_of(clipped[key] * scale)
        arrays[f'opt/update/{key}'] = slice_of(change)
        arrays[f'opt/update_norm/{key}'] = np.linalg.norm(change)
    return SimpleNamespace(**vars(start), arrays=arrays, memory=state.memory)


def published_gradients(state, optimizer):
    """Clipped gradients under their published names, from Adam's `mu` = (1 - b1) * gradient."""
    params = flax.traverse_util.flatten_dict(state.params)
    mean = flax.traverse_util.flatten_dict(optax.tree.get(state.opt_state, 'mu'))
    gradients = {
        path: np.zeros_like(value)
        if isinstance(mean[path], optax.MaskedNode)
        else mean[path] / (1 - optimizer.b1)
        for path, value in params.items()
    }
    gradients = to_torch(flax.traverse_util.unflatten_dict(gradients))
    # The gradient of a shared module is recorded under one of its names.
    return {key: value for key, value in gradients.items() if '.bbox_embed.' not in key}


def slice_of(array):
    """The recorded entries of an array: 64 evenly spaced ones, padded with zeros."""
    flat = np.ravel(array)[:: max(1, array.size // 64)][:64]
    return np.pad(flat, (0, 64 - len(flat)))
