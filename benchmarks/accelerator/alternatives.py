"""Every way that the project has, or could have, to compute the same thing, timed on one device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from benchmarks import row
from benchmarks.workload import alone, random_weights
from simcis_jax.losses import point_sampling, threshold_search
from simcis_jax.losses.matcher import match
from simcis_jax.losses.segmentation import SLOTS_PER_CHUNK
from simcis_jax.model.deformable_attention import IMPLEMENTATIONS, DeformableAttention
from simcis_jax.model.pixel_decoder import grid_centres

OUTPUTS = 10  # Decoder outputs that are matched at once.
Alternative = tuple[str, Callable, tuple]  # Name, jitted or plain function, arguments.


def measure(family: str, settings: row.Settings) -> list[dict]:
    """Median milliseconds of every alternative of a family; one that fails has an error."""
    found = []
    for name, function, arguments in FAMILIES[family](settings):
        try:
            call = functools.partial(_call, function, arguments)
            timed = row.first_and_warm(call, settings.repeats)
            seconds = sorted(timed['seconds'])[len(timed['seconds']) // 2]
            found.append({'name': name, 'ms': 1e3 * seconds})
        except Exception as error:  # An alternative that does not fit must not end the others.
            found.append({'name': name, 'error': f'{type(error).__name__}: {error!s:.300}'})
    return found


def _call(function: Callable, arguments: tuple) -> None:
    jax.block_until_ready(function(*arguments))


def deformable_attention(settings: row.Settings) -> Iterator[Alternative]:
    """One layer of the pixel decoder with each implementation."""
    shapes = tuple((settings.size // s,) * 2 for s in (32, 16, 8))
    references, width = grid_centres(shapes), 256
    tokens = jax.random.normal(jax.random.key(0), (settings.batch, len(references), width))
    for name in IMPLEMENTATIONS:
        if 'emulated' in name:  # For tests of numbers; it would take minutes.
            continue
        layer = DeformableAttention(implementation=name)
        init = functools.partial(layer.init, references=references, shapes=shapes)
        params = random_weights(jax.eval_shape(init, jax.random.key(0), tokens, tokens[0]))

        def run(params, tokens, layer=layer):
            return layer.apply(params, tokens, tokens[0], references, shapes)

        for gradient in (False, True):
            function, arguments, _ = alone(
                lambda run=run, params=params: (run, (params, tokens)), gradient
            )
            yield f'{name}, {"forward + backward" if gradient else "forward"}', function, arguments


def assignment(settings: row.Settings) -> Iterator[Alternative]:
    """The assignment of a batch, in the compiled program and by SciPy on the host."""
    rng, problems = np.random.default_rng(0), OUTPUTS * settings.batch
    shape = problems, settings.queries, settings.slots
    random = rng.normal(size=shape)
    # Targets that want the same queries: the search for each is long.
    clustered = rng.normal(size=shape[:2])[..., None] + 0.1 * random
    valid = jnp.broadcast_to(jnp.arange(settings.slots) < settings.targets, shape[::2])
    solve = jax.jit(jax.vmap(match))
    for name, cost in {'random': random, 'clustered': clustered}.items():
        cost = jnp.asarray(cost, jnp.float32)
        yield f'compiled, {name} costs', solve, (cost, valid)
        real = cost[:, :, : settings.targets]
        yield f'SciPy on the host, {name} costs', _scipy_match, (real,)


def _scipy_match(costs: jax.Array) -> jax.Array:
    pairs = [scipy.optimize.linear_sum_assignment(cost.T)[1] for cost in np.asarray(costs)]
    return jnp.asarray(np.stack(pairs), jnp.int32)


def choice_of_points(settings: row.Settings) -> Iterator[Alternative]:
    """The most uncertain candidates of the masks of a chunk of slots."""
    masks = OUTPUTS * settings.batch * SLOTS_PER_CHUNK
    count = int(0.75 * settings.points)
    certainty = jnp.abs(jax.random.normal(jax.random.key(0), (masks, 3 * settings.points)))
    ways = {
        'search for the threshold': lambda x: threshold_search.bottom_k(x, count),
        'lax.top_k': lambda x: jax.lax.top_k(-x, count)[1],
        'lax.approx_min_k': lambda x: jax.lax.approx_min_k(x, count, recall_target=0.95)[1],
    }
    for name, function in ways.items():
        yield name, jax.jit(function), (certainty,)


def samples_of_masks(settings: row.Settings) -> Iterator[Alternative]:
    """Mask logits at the points of a chunk of slots, with the gradient of the logits."""
    side, masks, width = settings.size // 4, OUTPUTS * SLOTS_PER_CHUNK, 256
    normal = functools.partial(jax.random.normal, jax.random.key(0))
    features = normal((settings.batch, side, side, width))
    embeddings = normal((settings.batch, masks, width)) / width**0.5
    points = jax.random.uniform(
        jax.random.key(1), (settings.batch, masks, settings.points, 2), jnp.float32
    )

    def maps_first(features, embeddings, points):
        maps = jnp.einsum('hwd,md->mhw', features, embeddings)
        return point_sampling.sample_map(maps, points)

    def features_first(features, embeddings, points):
        def one(embedding, points):
            return point_sampling.sample_features(features, points) @ embedding

        return jax.lax.map(lambda x: one(*x), (embeddings, points))

    def hat_products(features, embeddings, points):
        # A bilinear weight is the product of two hat functions of the distance in pixels.
        def one(embedding, points):
            distance = (points * side - 0.5)[..., None] - jnp.arange(side)
            x, y = jnp.moveaxis(jnp.maximum(0, 1 - jnp.abs(distance)), 1, 0)
            return (y @ (features @ embedding) * x).sum(axis=-1)

        return jax.lax.map(lambda x: one(*x), (embeddings, points))

    for name, function in {
        'maps, then single numbers': maps_first,
        'vectors of features, then products': features_first,
        'products with hat functions': hat_products,
    }.items():

        def total(features, embeddings, points, function=function):
            return jnp.square(jax.vmap(function)(features, embeddings, points)).sum()

        yield name, jax.jit(jax.grad(total, (0, 1))), (features, embeddings, points)


FAMILIES = {
    'deformable attention': deformable_attention,
    'assignment': assignment,
    'choice of points': choice_of_points,
    'samples of masks': samples_of_masks,
}
