"""Segmentations as pictures: overlays, legends, and grids next to the ground truth."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from simcis_jax.errors import FileError, writing
from simcis_jax.evaluation import drawing
from simcis_jax.evaluation.drawing import INK, PAPER, Box
from simcis_jax.types import Categories

# Shares of white (positive) or black mixed into the class colour of things, to tell them apart.
SHADES = (0.0, 0.38, -0.3, 0.2, -0.15, 0.55, -0.45)
LegendEntry = tuple[str, tuple[int, int, int]]


def overlay(
    image: np.ndarray,
    segment_map: np.ndarray,
    labels: Sequence[int],
    categories: Categories,
    *,
    alpha: float = 0.5,
    min_side: int = 512,
    max_side: int = 1600,
) -> np.ndarray:
    """Paints segments over an image: class colours, outlines between segments, class names.

    A name is written inside its segment, large enough to be read when the picture is as wide as a
    phone. Segments too small for their name get none; the legend lists all names.

    Args:
        image: [H, W, 3] uint8, RGB.
        segment_map: [H, W] integer; 0 = nothing, k = segment with class `labels[k - 1]`.
        labels: [K], classes; -1 = no segment.
        categories: names, colours, and which classes are things, whose instances vary in shade.
        alpha: opacity of the colours.
        min_side: smaller images are enlarged until no side is shorter, as far as `max_side` allows.
        max_side: larger images are shrunk until no side is longer.

    Returns:
        [H', W', 3] uint8, RGB.

    Raises:
        ValueError: image and segment map differ in size.
    """
    if image.shape[:2] != segment_map.shape:
        raise ValueError(
            f'An overlay needs image and segments of one size, got {image.shape[:2]} and '
            f'{segment_map.shape}; resize the segments to the image.'
        )
    sides = segment_map.shape
    scale = min(max(1.0, min_side / min(sides)), max_side / max(sides))
    height, width = (max(1, round(side * scale)) for side in sides)
    image = _resized(image, height, width)
    labels = np.asarray(labels, np.int64)
    is_segment = np.concatenate([[False], labels >= 0])
    segment_map = cv2.resize(
        segment_map.astype(np.int32), (width, height), interpolation=cv2.INTER_NEAREST
    )
    segment_map = np.where(is_segment[segment_map], segment_map, 0)
    line_width = max(1.2, min(height, width) / 500)
    sigma = max(scale / 2, 0.55 * line_width + 0.45)
    segment_map, lines = drawing.outlined(segment_map, sigma, line_width)

    colors = _segment_colors(segment_map, labels, categories)
    opacity = np.float32(alpha) * (segment_map > 0)[..., None]
    picture = image + opacity * (colors[segment_map] - image)
    picture += 0.9 * lines[..., None] * (np.float32(PAPER) - picture)
    picture = picture.round().astype(np.uint8)

    names = [categories.names[label] if label >= 0 else '' for label in labels]
    _write_names(picture, segment_map, names, colors)
    return picture


def legend(labels: Sequence[int], categories: Categories) -> list[LegendEntry]:
    """Name and colour of the classes in `labels`, in the order of the data set."""
    present = sorted({int(label) for label in labels if label >= 0})
    return [(categories.names[label], categories.colors[label]) for label in present]


def with_legend(
    picture: np.ndarray, legend: Sequence[LegendEntry], *, text_height: int | None = None
) -> np.ndarray:
    """Adds a legend below a picture [H, W, 3]; returns [H', W', 3] uint8, RGB.

    The result is wider than the picture only if a name would not fit.
    """
    height, width = picture.shape[:2]
    if not legend:
        return picture
    text_height = text_height or drawing.text_height_for(width, width)
    swatch, gap = round(1.4 * text_height), round(0.6 * text_height)
    entries = [swatch + drawing.text_width(name, text_height) for name, _ in legend]
    full_width = max(width, max(entries) + 2 * gap)
    places, x, y = [], gap, height + gap
    for entry in entries:
        if x > gap and x + entry + gap > full_width:
            x, y = gap, y + round(1.7 * text_height)
        places.append((x, y))
        x += entry + 2 * gap
    canvas = np.full((y + text_height + gap, full_width, 3), PAPER, np.uint8)
    canvas[:height, :width] = picture
    for (name, color), entry, (x, y) in zip(legend, entries, places, strict=True):
        drawing.fill_rounded(canvas, Box(x, y, text_height, text_height), color)
        drawing.write(
            canvas, name, Box(x + swatch, y, entry - swatch, text_height), text_height, INK
        )
    return canvas


def grid(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str] = ('image', 'ground truth', 'prediction'),
    legend: Sequence[LegendEntry] = (),
    *,
    cell_width: int = 384,
) -> np.ndarray:
    """Arranges pictures [H, W, 3] in a grid with column titles and a legend at the bottom.

    Pictures are resized to `cell_width`, keeping proportions. Returns [H', W', 3] uint8, RGB.

    Raises:
        ValueError: a row does not have one picture per title.
    """
    for number, row in enumerate(rows):
        if len(row) != len(titles):
            raise ValueError(
                f'Row {number} of the grid has {len(row)} pictures for the {len(titles)} titles '
                f'{tuple(titles)}; give one picture per title.'
            )
    gap, text_height = 12, 20
    head = 2 * text_height
    cells = [
        [
            _resized(cell, max(1, round(cell.shape[0] * cell_width / cell.shape[1])), cell_width)
            for cell in row
        ]
        for row in rows
    ]
    heights = [max(len(cell) for cell in row) for row in cells]
    width = gap + len(titles) * (cell_width + gap)
    canvas = np.full((head + sum(heights) + gap * len(heights), width, 3), PAPER, np.uint8)

    lefts = [gap + column * (cell_width + gap) for column in range(len(titles))]
    for left, title in zip(lefts, titles, strict=True):
        drawing.write(canvas, title, Box(left, 0, cell_width, head), text_height, INK)
    top = head
    for row, height in zip(cells, heights, strict=True):
        for left, cell in zip(lefts, row, strict=True):
            canvas[top : top + len(cell), left : left + cell_width] = cell
        top += height + gap
    return with_legend(canvas, legend, text_height=text_height)


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Writes RGB [H, W, 3] uint8 or grey [H, W] uint8 or uint16.

    Raises:
        FileError: the image cannot be encoded or the file cannot be written.
    """
    colors = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    ok, png = cv2.imencode('.png', colors)
    if not ok:
        raise FileError(f'Cannot encode a picture of shape {image.shape} as PNG for {path}.')
    with writing(path):
        Path(path).write_bytes(png.tobytes())


def _resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    shrinks = width < picture.shape[1]
    mode = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(picture, (width, height), interpolation=mode)


def _segment_colors(
    segment_map: np.ndarray, labels: np.ndarray, categories: Categories
) -> np.ndarray:
    """Colours [K + 1, 3] of the segments in 0..255; things of one class differ in shade."""
    colors = np.zeros((len(labels) + 1, 3), np.float32)
    shades = [itertools.cycle(SHADES) for _ in range(len(categories))]
    for segment in drawing.by_area(segment_map):
        label = labels[segment - 1]
        shade = next(shades[label]) if categories.is_thing[label] else 0.0
        target = 255 if shade > 0 else 0
        colors[segment] = (1 - abs(shade)) * np.array(categories.colors[label])
        colors[segment] += abs(shade) * target
    return colors


def _write_names(
    picture: np.ndarray, segment_map: np.ndarray, names: Sequence[str], colors: np.ndarray
) -> None:
    """Writes the name of each segment inside it, on a box of its colour; in place."""
    text_height = drawing.text_height_for(*picture.shape[1::-1])
    sizes = [
        (drawing.text_width(name, text_height) + text_height, round(1.5 * text_height))
        for name in names
    ]
    for segment, box in drawing.name_boxes(segment_map, sizes).items():
        color = colors[segment]
        drawing.fill_rounded(picture, box, color)
        drawing.write(picture, names[segment - 1], box, text_height, drawing.text_color(color))
