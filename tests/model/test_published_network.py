"""The whole network against arrays that the published code computed with the same weights."""

from types import SimpleNamespace

import golden_weights
import numpy as np
import parity
import published
import pytest

TOLERANCE = 2e-5  # Norm of the difference over norm; two float32 runs differ by 2e-6.

@pytest.fixture(
    scope='module',
    params=[
        ('eval_t1_r50', 'resnet50', 'S6:'),
        ('eval_t2_r50_odd', 'resnet50', 'S14:'),
        pytest.param(('eval_t1_r50_wide', 'resnet50', 'S6:'), marks=pytest.mark.slow),
        pytest.param(('eval_t1_r101_sem', 'resnet101', 'S6:'), marks=pytest.mark.slow),
    ],
    ids=lambda param: param[0],
)
def observed(request):
    """What the network computes from the images of a file."""
    file, backbone, salt = request.param
    golden = published.without_useless_rows(golden_weights.load(file))
    image, size = published.padded(golden['input/images'])
    params = published.weights(salt, backbone)
    predictions, arrays = published.forward(published.network(backbone), params, image, size)
    return SimpleNamespace(
        file=file, golden=golden, predictions=predictions, arrays=arrays, size=size
    )


def test_activations_and_selected_positions_are_the_published_ones(observed):
    compared = parity.names(observed.golden, *published.ACTIVATIONS)
    compared = [name for name in compared if '/attn_' not in name]
    assert 'sel/topk' in compared and len(compared) == 101
    parity.compare(observed.file, observed.golden, observed.arrays, compared, TOLERANCE)


def test_queries_attend_where_the_published_ones_do(observed):
    published.compare_attention(observed.file, observed.golden, observed.arrays)
