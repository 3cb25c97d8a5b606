"""Charts: ticks, positions, and the descriptions for screen readers."""

import re

import numpy as np
import pytest

from simcis_jax.reporting import charts
from simcis_jax.reporting.charts import Axes, Span


@pytest.mark.parametrize(
    'low, high',
    [(0, 1), (0.2, 0.37), (-3, 5), (1e-7, 3e-7), (0, 160_000), (20.1, 66.5), (4, 4), (0, 0)],
)
def test_ticks_are_round_few_evenly_spaced_and_enclose(low, high):
    values = charts.ticks(low, high)
    assert values[0] <= low and values[-1] >= high and 2 <= len(values) <= 7
    steps = np.diff(values)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert f'{steps[0]:.0e}'[0] in '125'
    assert float(f'{steps[0]:.0e}') == pytest.approx(steps[0])


@pytest.mark.parametrize('low, high', [(2e-5, 1e-3), (1.0, 1.0), (1e-3, 1e-3), (0.9, 101.0)])
def test_powers_of_ten_enclose(low, high):
    values = charts.powers_of_ten(low, high)
    assert values[0] <= low * 1.001 and values[-1] >= high * 0.999
    np.testing.assert_allclose(np.diff(np.log10(values)), 1)


@pytest.mark.parametrize(
    'value, text',
    [(0, '0'), (47.0, '47'), (0.0333333, '0.0333'), (0.0005, '5e-4'), (-2e-6, '-2e-6'),
     (9999, '10k'), (40_000, '40k'), (1.5e6, '1.5M'), (4560.4, '4560')],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert charts.number(value) == text


def test_thinning_keeps_means_and_ranges():
    ys = np.random.default_rng(0).normal(size=101)
    drawn = charts.thinned(list(enumerate(ys)), 20)
    assert len(drawn) <= 20
    size = 6  # The smallest group size with at most 20 groups.
    for i, (x, y, low, high) in enumerate(drawn):
        part = slice(i * size, (i + 1) * size)
        assert x == pytest.approx(np.arange(101)[part].mean())
        assert (y, low, high) == pytest.approx((ys[part].mean(), ys[part].min(), ys[part].max()))
    assert charts.thinned([(0, 1.0), (1, 3.0)], 2) == [(0, 1.0, 1.0, 1.0), (1, 3.0, 3.0, 3.0)]


def test_axes_map_values_to_pixels():
    axes = Axes(100, 80, (0, 10), [0, 5], left=20, right=10, top=10, bottom=10)
    assert (axes.px(0), axes.px(10), axes.py(0), axes.py(5)) == (20, 90, 70, 10)
    log = Axes(100, 80, (0, 10), [1e-4, 1e-3, 1e-2], log=True, top=10, bottom=10)
    assert log.py(1e-3) == pytest.approx(40)


def path_points(svg, class_):
    paths = [x.get('d') for x in svg.iter('path') if x.get('class') == class_]
    return [[tuple(map(float, p.split())) for p in re.split('[ML]', d)[1:]] for d in paths]


def test_a_curve_has_a_line_per_stage_and_describes_its_range():
    spans = [Span(1, 0, 100), Span(2, 100, 150)]
    svg = charts.curve('dice', spans, [[(50, 4.0), (100, 2.0)], [(125, 3.0), (150, 1.0)]])
    first, second = path_points(svg, 'line c0')
    assert first[0][1] < first[1][1] and second[0][1] < second[1][1]  # Falling values go down.
    assert first[1][0] < second[0][0]
    label = svg.get('aria-label')
    assert 'dice' in label and '4 at first, 1 at the end, between 1 and 4' in label
    assert [t.text for t in svg.iter('text')][:2] == ['stage 1', '2']


def test_many_points_become_a_line_and_a_band():
    line = [(step, float(step % 2)) for step in range(1000)]
    svg = charts.curve('mask', [Span(1, 0, 999)], [line])
    (drawn,) = path_points(svg, 'line c0')
    assert len(drawn) <= 240
    assert any(x.get('class') == 'band' for x in svg.iter('path'))


def test_a_metric_that_starts_in_stage_2_is_drawn_there():
    svg = charts.curve('csl', [Span(1, 0, 100), Span(2, 100, 200)], [[(150, 1.0), (200, 2.0)]])
    (line,) = path_points(svg, 'line c0')
    (shade,) = (x for x in svg.iter('rect') if x.get('class') == 'shade')
    left, width = float(shade.get('x')), float(shade.get('width'))
    assert left + width / 2 == pytest.approx(line[0][0], abs=0.2)


def test_labels_of_stage_scores_do_not_overlap():
    svg = charts.stage_chart(
        'PQ', [1, 2], {'base': [60.0, 41.0], 'novel': [None, 40.0], 'past': [None, None],
                       'all': [60.0, 40.5]},
    )  # fmt: skip
    places = [float(t.get('y')) for t in svg.iter('text') if t.text in ('base', 'novel', 'all')]
    assert len(places) == 3 and min(np.diff(sorted(places))) > 14
    assert 'base 41.0, novel 40.0, all 40.5' in svg.get('aria-label')
    titles = [t.text for t in svg.iter('title')]
    assert 'novel after stage 2: 40.0' in titles and not any('past' in t for t in titles)


def test_the_axis_of_scores_starts_at_zero_even_if_all_are_zero():
    svg = charts.stage_chart('PQ', [1, 2], {'all': [0.0, 0.0]})
    labels = [
        float(t.text) for t in svg.iter('text') if t.get('text-anchor') == 'end' and t.get('dy')
    ]
    assert min(labels) == 0 and max(labels) == 1


def test_a_run_of_one_stage_has_a_chart():
    svg = charts.stage_chart('PQ', [1], {'all': [50.0]})
    assert len([x for x in svg.iter('polygon')] + [x for x in svg.iter('circle')]) == 1
