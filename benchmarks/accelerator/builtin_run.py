"""A short run of the built-in shapes: one joint stage and its evaluation."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

# The data pipeline, the checkpoints and the scores need them; the other parts do not.
NEEDS = (
    'grain',
    'tensorflow_datasets',
    'array_record',
    'ml_collections',
    'pycocotools',
    'tensorboardX',
    'orbax',
)


def measure(steps: int) -> dict:
    """Trains so many steps and evaluates once.

    Returns:
        Seconds in all, steps per second at the end, first and last loss, scores of all classes.
    """
    from simcis_jax import main
    from simcis_jax.configs import shapes_cps_8_2
    from simcis_jax.training.metrics_log import read_metrics

    config = shapes_cps_8_2.get_config()
    config.protocol.base = 12  # All classes: a single stage.
    config.training.update(base_steps=steps, log_every=max(1, steps // 6))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        main.run(config, folder)
        seconds = time.perf_counter() - start
        records = read_metrics(Path(folder, 'metrics.jsonl'))
        report = json.loads(Path(folder, 'stage_1', 'evaluation.json').read_text())
    scores = {name: x['all'] for name, x in report.items() if isinstance(x, dict) and 'all' in x}
    return {
        'seconds': seconds,
        'steps_per_second': records[-1]['steps_per_second'],
        'loss': [records[0]['total'], records[-1]['total']],
        'scores': scores,
    }
