"""Figure 3: drift of queries and features from those of the model after stage 1.

    python -m experiments.drift --data=shapes --workdir=runs/shapes
    python -m experiments.drift --data=ade20k --data_root=DATA --workdir=runs/ade20k

Compares the model after stage 1 with the models after later stages by mean cosine similarity on
validation images: of the finest feature map at every position, and of the queries after every
decoder layer. Learned queries are compared by index. For selected queries, the later model decodes
the positions that the first model selected. The runs are those of `components`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from experiments import command, components, figures, tables
from experiments.experiment import Experiment, Results
from experiments.features import load_params, make_network, validation_images
from experiments.sweep import Run
from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.runtime.files import write_atomically

NUM_IMAGES = 32
LABELS = ('pseudo-labels, learned queries', '+ QPA', 'SimCIS')


def cosine_similarity(a: Array, b: Array) -> Array:
    """Mean cosine similarity of the vectors of a [..., D] and b [..., D]."""
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.mean(jnp.sum(a * b, axis=-1) / jnp.maximum(norms, 1e-9))


@dataclasses.dataclass(frozen=True)
class Drift:
    """Cosine similarities of the models of a run to the model after stage 1."""

    feature_map: dict[int, float]  # By stage.
    queries: dict[int, list[float]]  # By stage: before the decoder, then after each layer.


def measure(run: Run, num_images: int = NUM_IMAGES) -> Drift:
    """Compares the model after each stage with the model after stage 1 on validation images."""
    images, model = validation_images(run, num_images), make_network(run)

    @jax.jit
    def describe(params, positions):
        def one(inputs):
            image, chosen = inputs
            return jax.tree.map(lambda x: x[0], features(model, params, image[None], chosen))

        return jax.lax.map(one, (images, positions))

    first = load_params(run, 1)
    feature_map, queries, positions = describe(first, None)
    drift = Drift({}, {})
    for stage in range(1, len(run.stages) + 1):
        later_map, later_queries, _ = describe(load_params(run, stage), positions)
        drift.feature_map[stage] = float(cosine_similarity(feature_map, later_map))
        pairs = zip(queries, later_queries, strict=True)
        drift.queries[stage] = [float(cosine_similarity(*pair)) for pair in pairs]
    return drift


def features(
    model: Mask2Former, params: Any, image: Array, positions: Array | None = None
) -> tuple[Array, list[Array], Array]:
    """The finest map [1, h, w, D], queries [1, Q, D] of every layer, and their positions [1, Q].

    Args:
        model: the network.
        params: its parameters.
        image: [1, H, W, 3].
        positions: [Q] positions to decode instead of the selected ones; ignored by learned queries.
    """
    replays = model.queries == 'selected' and positions is not None
    output, state = model.apply(
        {'params': params},
        image,
        replay_positions=positions[None] if replays else None,
        capture_intermediates=_is_wanted,
    )
    selection = (output[0] if replays else output).selection
    found = state['intermediates']
    # The last call decodes `positions`. A layer returns (queries, virtual queries).
    layers = [found['decoder'][f'layers_{i}']['__call__'] for i in range(model.decoder_layers)]
    initial = found['query_prealignment']['queries_at'][-1][0] if replays else selection.queries
    maps, _ = found['pixel_decoder']['__call__'][-1]
    return maps[-1], [initial, *(calls[-1][0] for calls in layers)], selection.positions


def _is_wanted(module: Any, method: str) -> bool:
    kinds = {
        'PixelDecoder': '__call__',
        'DecoderLayer': '__call__',
        'QueryPrealignment': 'queries_at',
    }
    return kinds.get(type(module).__name__) == method


def analyze(runs: Sequence[Run], results: Results, folder: Path) -> str:
    """A table and a figure of the drift of every finished variant (first seed)."""
    wanted = {run.variant.label: run for run in reversed(runs) if run.folder in results}
    measured = {label: measure(wanted[label]) for label in LABELS if label in wanted}
    if not measured:
        return ''
    name = next(iter(wanted.values())).setting
    figures.save(draw(measured), folder / f'drift-{name}')
    content = {label: dataclasses.asdict(drift) for label, drift in measured.items()}
    write_atomically(folder / f'drift-{name}.json', json.dumps(content, indent=2))
    return table(name, measured)


def draw(measured: Mapping[str, Drift]) -> figures.Figure:
    """Plots feature map and queries over stages, and the queries of the last stage over layers."""
    last = max(next(iter(measured.values())).queries)
    return figures.lines(
        'Similarity to the model after stage 1',
        {
            'finest feature map': {label: drift.feature_map for label, drift in measured.items()},
            'queries after the decoder': {
                label: {stage: found[-1] for stage, found in drift.queries.items()}
                for label, drift in measured.items()
            },
            f'queries after stage {last}, by layer': {
                label: dict(enumerate(drift.queries[last])) for label, drift in measured.items()
            },
        },
        x_labels=('stage', 'stage', 'decoder layer (0 = before)'),
        y_label='mean cosine similarity',
    )


def table(name: str, measured: Mapping[str, Drift]) -> str:
    """The similarities after the last stage as a Markdown table."""
    rows = []
    for label, drift in measured.items():
        last = max(drift.queries)
        numbers = [drift.feature_map[last], drift.queries[last][0], drift.queries[last][-1]]
        rows.append([label, *(f'{number:.3f}' for number in numbers)])
    return tables.table(
        f'{name}: cosine similarity of the models after the first and the last stage',
        ['', 'finest feature map', 'queries before the decoder', 'queries after the decoder'],
        rows,
    )


EXPERIMENT = Experiment(
    name='drift',
    title='Drift from the first stage',
    settings=components.PANOPTIC,
    variants=[variant for variant in components.VARIANTS if variant.label in LABELS],
    with_scores=False,
    analyze=analyze,
)

if __name__ == '__main__':
    command.main(EXPERIMENT)
