"""Line charts as SVG elements. Colours and fonts come from style.css."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from simcis_jax.reporting.elements import Element, element

Point = tuple[float, float]


def number(value: float) -> str:
    """Formats a number with three significant digits: 0.05, 47, 13k, 2e-6."""
    if 0 < abs(value) < 0.001:
        mantissa, exponent = f'{value:.2e}'.split('e')
        return f'{float(mantissa):g}e{int(exponent)}'
    value = float(f'{value:.3g}')
    if abs(value) >= 10_000:
        return f'{value / 1e6:g}M' if abs(value) >= 1e6 else f'{value / 1e3:g}k'
    return f'{value:g}'


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers, 1, 2 or 5 times a power of ten apart, that enclose a range."""
    if high - low <= 1e-9 * abs(high):
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def powers_of_ten(low: float, high: float) -> list[float]:
    """Powers of ten that enclose a range of positive numbers."""
    first = math.floor(math.log10(low) + 1e-6)
    last = max(math.ceil(math.log10(high) - 1e-6), first + 1)
    return [10.0**power for power in range(first, last + 1)]


def thinned(points: Sequence[Point], most: int) -> list[tuple[float, float, float, float]]:
    """Reduces points to at most `most` groups: mean x, mean y, lowest y and highest y of each."""
    size = max(1, -(-len(points) // most))
    made = []
    for start in range(0, len(points), size):
        xs, ys = zip(*points[start : start + size], strict=True)
        made.append((sum(xs) / len(xs), sum(ys) / len(ys), min(ys), max(ys)))
    return made


@dataclasses.dataclass(frozen=True)
class Axes:
    """Maps values to pixels of a chart."""

    width: int
    height: int
    x: tuple[float, float]  # Lowest and highest value.
    y_ticks: Sequence[float]  # Labelled values; the first and last one bound the axis.
    log: bool = False  # Whether y is logarithmic.
    left: int = 44
    right: int = 10
    top: int = 20
    bottom: int = 24

    def px(self, x: float) -> float:
        """Pixels from the left edge."""
        low, high = self.x
        share = (x - low) / (high - low) if high > low else 0.5
        return self.left + share * (self.width - self.left - self.right)

    def py(self, y: float) -> float:
        """Pixels from the top edge."""
        values = (self.y_ticks[0], self.y_ticks[-1], y)
        low, high, y = map(math.log10, values) if self.log else values
        share = (y - low) / (high - low)
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)

    def path(self, points: Sequence[Point]) -> str:
        """The points as an SVG path."""
        return 'M' + 'L'.join(f'{self.px(x):.1f} {self.py(y):.1f}' for x, y in points)

    def frame(self) -> list[Element]:
        """Horizontal grid lines with their labels."""
        made = []
        for value in self.y_ticks:
            y = f'{self.py(value):.1f}'
            ends = dict(x1=self.left, x2=self.width - self.right, y1=y, y2=y)
            made.append(element('line', **ends, class_='grid'))
            made.append(_text(number(value), self.left - 6, y, 'end', dy='.32em'))
        return made


@dataclasses.dataclass(frozen=True)
class Span:
    """The range of steps of a stage, counted from the start of the run."""

    stage: int
    start: float
    end: float


def curve(
    name: str,
    spans: Sequence[Span],
    lines: Sequence[Sequence[Point]],
    *,
    log: bool = False,
    most: int = 240,
) -> Element:
    """A chart of one metric over the steps of all stages.

    Long lines are thinned: the line is the mean of neighbouring points, a band shows their range.

    Args:
        name: name of the metric.
        spans: step ranges of the stages, in order.
        lines: points (step from the start of the run, value), one line per stage with values.
        log: use a logarithmic axis if all values are positive.
        most: maximum number of points to draw.
    """
    values = [value for line in lines for _, value in line]
    low, high = min(values), max(values)
    log = log and low > 0
    y_ticks = powers_of_ten(low, high) if log else ticks(low, high)
    axes = Axes(360, 200, (0, spans[-1].end), y_ticks, log)
    shapes = []
    free = 0.0  # Right end of the previous label.
    for position, span in enumerate(spans):
        left, right = axes.px(span.start), axes.px(span.end)
        if position % 2:
            size = dict(width=f'{right - left:.1f}', height=axes.height - axes.top - axes.bottom)
            shapes.append(element('rect', x=f'{left:.1f}', y=axes.top, **size, class_='shade'))
        if len(spans) > 1 and left >= free:
            title = f'{"" if position else "stage "}{span.stage}'
            free = left + 9 + 7 * len(title)
            shapes.append(_text(title, f'{left + 3:.1f}', axes.top - 6, 'start'))
    shapes += axes.frame()
    steps = [step for step in ticks(*axes.x) if step <= axes.x[1]]
    for step in steps:
        title = number(step) + (' steps' if step == steps[-1] else '')
        anchor = 'end' if axes.px(step) > axes.width - 40 else 'middle'
        shapes.append(_text(title, f'{axes.px(step):.1f}', axes.height - 6, anchor))
    for line in lines:
        drawn = thinned(line, max(2, most * len(line) // len(values)))
        if len(drawn) < len(line):
            upper = [(x, highest) for x, _, _, highest in drawn]
            lower = [(x, lowest) for x, _, lowest, _ in reversed(drawn)]
            shapes.append(element('path', d=axes.path(upper + lower) + 'Z', class_='band'))
        if len(drawn) == 1:
            x, y, _, _ = drawn[0]
            shapes.append(_mark('circle', axes.px(x), axes.py(y), 'c0'))
        else:
            path = axes.path([(x, y) for x, y, _, _ in drawn])
            shapes.append(element('path', d=path, class_='line c0'))
    description = (
        f'{name} during training: {number(values[0])} at first, {number(values[-1])} at the end, '
        f'between {number(low)} and {number(high)}.'
    )
    return _svg(axes, description, shapes)


# Markers, so that lines do not differ by colour alone.
MARKS = ('circle', 'square', 'diamond', 'triangle', 'down')


def stage_chart(
    title: str, stages: Sequence[int], lines: Mapping[str, Sequence[float | None]]
) -> Element:
    """A chart of scores in percent after each stage; the last line is bold.

    Args:
        title: name of the metric.
        stages: numbers of the stages.
        lines: label -> one score per stage, or None.
    """
    points = {
        name: [(i, score) for i, score in enumerate(scores) if score is not None]
        for name, scores in lines.items()
    }
    points = {name: line for name, line in points.items() if line}
    highest = max((y for line in points.values() for _, y in line), default=0.0)
    axes = Axes(
        380, 260, (-0.03 * len(stages), len(stages) - 1), ticks(0, highest or 1.0), right=58, top=12
    )
    shapes = axes.frame()
    every = -(-len(stages) // 12)
    for i, stage in list(enumerate(stages))[::every]:
        shapes.append(_text(str(stage), f'{axes.px(i):.1f}', axes.height - 6, 'middle'))
    shapes.append(_text('stage', axes.left - 6, axes.height - 6, 'end'))
    label_ys = _apart([axes.py(line[-1][1]) for line in points.values()], 16)
    names = list(lines)
    for (name, line), label_y in zip(points.items(), label_ys, strict=True):
        index = names.index(name)
        style = f'c{index} bold' if name == names[-1] else f'c{index}'
        shapes.append(element('path', d=axes.path(line), class_=f'line {style}'))
        # With more than 20 stages only the last point has a marker.
        for x, y in line if len(stages) <= 20 else line[-1:]:
            text = element('title', f'{name} after stage {stages[x]}: {y:.1f}')
            mark = _mark(MARKS[index % len(MARKS)], axes.px(x), axes.py(y), style)
            shapes.append(element('g', text, mark))
        end = axes.px(line[-1][0]) + 9
        shapes.append(_text(name, f'{end:.1f}', f'{label_y:.1f}', 'start', style, dy='.32em'))
    ends = ', '.join(f'{name} {line[-1][1]:.1f}' for name, line in points.items())
    return _svg(axes, f'{title} after each stage; at the end: {ends}.', shapes)


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Moves positions apart until neighbours have a distance of at least `gap`."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for _ in range(100):  # Neighbours push each other apart, a few pixels per iteration.
        for upper, lower in zip(order, order[1:], strict=False):
            push = (gap - (moved[lower] - moved[upper])) / 2
            if push > 0:
                moved[upper], moved[lower] = moved[upper] - push, moved[lower] + push
    return moved


def _mark(kind: str, x: float, y: float, style: str) -> Element:
    if kind == 'circle':
        return element('circle', cx=f'{x:.1f}', cy=f'{y:.1f}', r='3.5', class_=f'mark {style}')
    corners = {
        'square': ((-3.3, -3.3), (3.3, -3.3), (3.3, 3.3), (-3.3, 3.3)),
        'diamond': ((0, -4.8), (4.8, 0), (0, 4.8), (-4.8, 0)),
        'triangle': ((0, -4.6), (4.4, 3.4), (-4.4, 3.4)),
        'down': ((0, 4.6), (4.4, -3.4), (-4.4, -3.4)),
    }[kind]
    points = ' '.join(f'{x + dx:.1f},{y + dy:.1f}' for dx, dy in corners)
    return element('polygon', points=points, class_=f'mark {style}')


def _text(
    text: str, x: object, y: object, anchor: str, class_: str | None = None, dy: str | None = None
) -> Element:
    return element('text', text, x=x, y=y, text_anchor=anchor, class_=class_, dy=dy)


def _svg(axes: Axes, description: str, shapes: Sequence[Element]) -> Element:
    box = f'0 0 {axes.width} {axes.height}'
    # Screen readers read the description instead of the shapes.
    return element('svg', *shapes, viewBox=box, role='img', aria_label=description)
