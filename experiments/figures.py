"""Matplotlib figures of the results, saved as SVG and PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from experiments.scores import TITLES
from experiments.tables import Row

BLUE, ORANGE, PURPLE, GREEN, RED, INK, SOFT, RULE = (
    '#0067a3', '#b94a00', '#8a4b9c', '#007a5a', '#b3123f', '#1c2128', '#59636e', '#d8dde3',
)  # fmt: skip
COLORS = (BLUE, ORANGE, PURPLE, GREEN, INK, RED)
MARKERS = ('o', 's', 'D', '^', 'v', 'P')
STYLE = {
    'font.family': 'sans-serif',
    'font.size': 11,
    'text.color': INK,
    'axes.edgecolor': RULE,
    'axes.labelcolor': SOFT,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.titlesize': 12,
    'axes.titlelocation': 'left',
    'axes.axisbelow': True,
    'grid.color': RULE,
    'xtick.color': SOFT,
    'ytick.color': INK,
    'svg.fonttype': 'none',  # Keep text as text.
    'svg.hashsalt': 'simcis_jax',  # Reproducible files.
    'figure.facecolor': 'white',
    'savefig.bbox': 'tight',
    'savefig.dpi': 200,
}


def save(figure: Figure, path: Path) -> None:
    """Writes path.svg and path.png, creating their folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure.savefig(f'{path}.svg', metadata={'Date': None})
        figure.savefig(f'{path}.png')


def bars(title: str, rows: Sequence[Row], *, with_paper: bool = False) -> Figure:
    """Bar chart of base, novel and all of every variant, with a dot for each seed.

    Args:
        title: title of the figure.
        rows: variants; those without results are left out, unless the paper has numbers for them.
        with_paper: whether to mark the paper's numbers.
    """
    columns = ('base', 'novel', 'all')
    rows = [row for row in rows if row.scores or (with_paper and row.paper)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 1.3 + 0.42 * len(rows)), layout='constrained')
        panels = figure.subplots(1, 3, sharey=True, sharex=True)
        figure.suptitle(title, x=0.01, ha='left', fontweight='bold')
        for panel, column, color in zip(panels, columns, (BLUE, ORANGE, INK), strict=True):
            panel.set_title(TITLES[column], color=color)
            panel.grid(axis='x')
            panel.tick_params(length=0)
            for place, row in enumerate(rows):
                _bar(panel, place, row, column, color, with_paper)
        panels[0].set_yticks(range(len(rows)), [row.label for row in rows])
        panels[0].invert_yaxis()
        panels[0].set_xlim(0, 1.42 * max(1.0, *(panel.dataLim.x1 for panel in panels)))
        if with_paper and any(row.paper for row in rows):
            mark = panels[2].scatter([], [], marker='|', color=INK, s=120, linewidths=2)
            figure.legend([mark], ['paper'], loc='upper right', frameon=False)
    return figure


def _bar(panel, place: int, row: Row, column: str, color: str, with_paper: bool) -> None:
    values = [scores[column] for scores in row.scores.values() if scores[column] is not None]
    summary = row.summary(column)
    printed = getattr(row.paper, column) if with_paper and row.paper else None
    if summary:
        panel.barh(place, summary.mean, 0.62, color=_light(color))
        panel.scatter(values, [place] * len(values), s=14, color=color, zorder=3)
    if printed is not None:
        panel.plot([printed, printed], [place - 0.42, place + 0.42], color=INK, linewidth=2)
    if summary or printed is not None:
        right = max([*values, printed or 0.0])
        text = str(summary) if summary else f'({printed:.1f})'
        place = (right, place)
        panel.annotate(text, place, (7, 0), textcoords='offset points', va='center', fontsize=10)


def _light(color: str) -> tuple[float, ...]:
    """The colour mixed with white; opaque, so that grid lines below are hidden."""
    return tuple(0.3 * part + 0.7 for part in to_rgb(color))


def boxes(title: str, values: Mapping[str, Sequence[float]]) -> Figure:
    """A box plot with a dot for every value."""
    values = {label: list(found) for label, found in values.items() if found}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.6 + 1.7 * len(values), 4.2), layout='constrained')
        panel = figure.subplots()
        panel.set_title(title, fontweight='bold')
        panel.grid(axis='y')
        panel.tick_params(length=0)
        drawn = panel.boxplot(
            list(values.values()), widths=0.5, patch_artist=True, showfliers=False
        )
        rng = np.random.default_rng(0)
        for place, (box, found) in enumerate(zip(drawn['boxes'], values.values(), strict=True)):
            color = COLORS[place % len(COLORS)]
            box.set(facecolor=_light(color), edgecolor=color)
            spread = rng.uniform(-0.12, 0.12, len(found))
            panel.scatter(place + 1 + spread, found, s=18, color=color, zorder=3)
        for line in drawn['medians']:
            line.set(color=INK, linewidth=1.8)
        for line in (*drawn['whiskers'], *drawn['caps']):
            line.set(color=SOFT)
        panel.set_xticks(range(1, len(values) + 1), [label.replace(', ', '\n') for label in values])
        panel.set_ylim(bottom=0)
    return figure


def lines(
    title: str,
    panels: Mapping[str, Mapping[str, Mapping[float, float]]],
    *,
    x_labels: Sequence[str],
    y_label: str,
) -> Figure:
    """Line charts side by side. `panels` maps panel title -> line label -> x -> y."""
    names = list(dict.fromkeys(name for found in panels.values() for name in found))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.9 * len(panels), 4.2), layout='constrained')
        axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
        figure.suptitle(title, x=0.01, ha='left', fontweight='bold')
        for axis, (name, found), x_label in zip(axes, panels.items(), x_labels, strict=True):
            axis.set_title(name)
            axis.set_xlabel(x_label)
            axis.grid(axis='y')
            axis.tick_params(length=0)
            places = sorted({x for line in found.values() for x in line})
            if all(float(x).is_integer() for x in places):
                axis.set_xticks(places)
            for label, line in found.items():
                turn, index = divmod(names.index(label), len(COLORS))
                style = dict(color=COLORS[index], marker=MARKERS[index], linewidth=2)
                style['linestyle'] = ('-', '--')[turn % 2]
                axis.plot(list(line), list(line.values()), label=label, **style)
        axes[0].set_ylabel(y_label)
        handles, labels = axes[0].get_legend_handles_labels()
        columns = min(len(labels), 2 * len(panels))
        figure.legend(handles, labels, loc='outside lower center', ncols=columns, frameon=False)
    return figure


def grid(title: str, titles: Sequence[str], rows: Sequence[Sequence[np.ndarray]]) -> Figure:
    """A grid of pictures [H, W, 3] uint8 with a title above each column."""
    height, width = rows[0][0].shape[:2]
    with matplotlib.rc_context(STYLE):
        size = (2.0 * len(titles), 1.0 + 2.0 * height / width * len(rows))
        figure = Figure(figsize=size, layout='constrained')
        figure.suptitle(title, x=0.01, ha='left', fontweight='bold')
        axes = np.atleast_2d(figure.subplots(len(rows), len(titles), squeeze=False))
        for place, name in enumerate(titles):
            axes[0, place].set_title(name, fontsize=11)
        for axis, picture in zip(axes.flat, (p for row in rows for p in row), strict=True):
            axis.imshow(picture, interpolation='nearest')
            axis.set_axis_off()
    return figure
