"""Scaling of a train step with teacher, CSL and VQ: a figure and its numbers.

    python -m benchmarks.curves --numbers=curves.json --figure=curves.svg

Varies one setting at a time; the others stay at a size that a small machine can handle. Simulated
devices share the CPU cores and split the same work, so a flat line is the ideal result. Points that
are already in --numbers are not measured again.
"""

from __future__ import annotations

import dataclasses
import json
import time
import xml.etree.ElementTree as ET
from pathlib import Path

from absl import app, flags

from benchmarks.process import machine, measure
from benchmarks.row import OURS, Measurement, Settings
from simcis_jax.reporting.charts import Axes, number, ticks
from simcis_jax.reporting.elements import Element, element

NUMBERS = flags.DEFINE_string('numbers', 'curves.json', 'JSON file to write or add to.')
FIGURE = flags.DEFINE_string('figure', 'curves.svg', 'SVG file to write.')

ROW = 'train step, teacher + CSL + VQ'
BASE = Settings(size=256, repeats=3)


@dataclasses.dataclass(frozen=True)
class Curve:
    """A setting to vary, and the values of the other settings."""

    title: str
    setting: str
    values: tuple[int, ...]
    base: Settings = BASE

    def settings(self) -> list[Settings]:
        """The settings of every point."""
        return [dataclasses.replace(self.base, **{self.setting: value}) for value in self.values]


CURVES = (
    Curve('classes', 'classes', (150, 1000, 10000)),
    Curve('stored queries per class', 'bank_size', (80, 1280)),
    Curve('side of the image, pixels', 'size', (256, 448, 640)),
    Curve('images per step', 'batch', (1, 4)),
    Curve('simulated devices, 4 images', 'devices', (1, 2, 4), dataclasses.replace(BASE, batch=4)),
)


def key_of(settings: Settings) -> str:
    """Key of a point in the JSON file; curves can share points."""
    return json.dumps(dataclasses.asdict(settings), sort_keys=True)


def draw(found: dict[str, Measurement]) -> Element:
    """One panel per curve: medians with ranges."""
    width, height = 250, 190
    panels = []
    for i, curve in enumerate(CURVES):
        points = [found[key_of(s)] for s in curve.settings()]
        highest = max(max(m.seconds) for m in points)
        axes = Axes(width, height, (-0.3, len(points) - 0.7), ticks(0, highest), top=30, bottom=22)
        shapes = axes.frame()
        shapes.append(_text(curve.title, axes.left, 16, 'start'))
        shapes.append(_text('s', axes.left - 8, 16, 'end'))  # The unit of the y axis.
        medians = [(x, m.median) for x, m in enumerate(points)]
        shapes.append(element('path', d=axes.path(medians), class_='line'))
        for x, m in enumerate(points):
            px = f'{axes.px(x):.1f}'
            low, high = (f'{axes.py(y):.1f}' for y in (min(m.seconds), max(m.seconds)))
            shapes.append(element('line', x1=px, x2=px, y1=low, y2=high, class_='line'))
            shapes.append(element('circle', cx=px, cy=f'{axes.py(m.median):.1f}', r='3'))
            shapes.append(_text(number(curve.values[x]), px, height - 6, 'middle'))
        panels.append(element('g', *shapes, transform=f'translate({i * width} 0)'))
    style = element(
        'style',
        'text{font:11px sans-serif;fill:#555}.grid{stroke:#ddd}circle{fill:#2563a8}'
        '.line{fill:none;stroke:#2563a8;stroke-width:1.5}',
    )
    box = f'0 0 {width * len(CURVES)} {height}'
    paper = element('rect', width='100%', height='100%', fill='#fff')
    return element(
        'svg',
        style,
        paper,
        *panels,
        viewBox=box,
        xmlns='http://www.w3.org/2000/svg',
        role='img',
        aria_label='Seconds per train step over ' + ', '.join(c.title for c in CURVES),
    )


def _text(text: str, x: object, y: object, anchor: str) -> Element:
    return element('text', text, x=x, y=y, text_anchor=anchor)


def main(_) -> None:
    """Measures missing points, writes the numbers and draws the figure."""
    out = Path(NUMBERS.value)
    content = json.loads(out.read_text()) if out.exists() else dict(points={})
    if content.get('machine', machine()) != machine():
        raise ValueError(
            f'{out} has points of {content["machine"]}, this is {machine()}; give another '
            '--numbers.'
        )
    found = {key: Measurement(**m) for key, m in content['points'].items()}
    for curve in CURVES:
        for value, settings in zip(curve.values, curve.settings(), strict=True):
            if key_of(settings) not in found:
                found[key_of(settings)] = measure(ROW, OURS, settings)
                points = {key: dataclasses.asdict(m) for key, m in found.items()}
                header = dict(machine=machine(), date=time.strftime('%Y-%m-%d'), row=ROW)
                out.write_text(json.dumps(header | dict(points=points), indent=1) + '\n')
            point = found[key_of(settings)]
            print(
                f'{curve.title}: {value}: {point.median:.2f} s '
                f'({min(point.seconds):.2f} to {max(point.seconds):.2f}), '
                f'{point.planned_mib:.0f} MiB planned',
                flush=True,
            )
    Path(FIGURE.value).write_text(ET.tostring(draw(found), 'unicode') + '\n')


if __name__ == '__main__':
    app.run(main)
