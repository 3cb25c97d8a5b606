"""Segmentations as pictures a person can read: overlays, and grids of them beside the truth."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from simcis_jax.types import Categories

INK, PAPER = (40, 44, 52), (255, 255, 255)
# Mixes a thing's class colour with white (positive) or black, so that neighbours can be told apart.
SHADES = (0.0, 0.38, -0.3, 0.2, -0.15, 0.55, -0.45)
FONT = cv2.FONT_HERSHEY_DUPLEX
SUPERSAMPLING = 4  # Text is drawn this much larger and shrunk: vector fonts are rough when small.


def overlay(
    image: np.ndarray,
    segment_map: np.ndarray,
    labels: Sequence[int],
    categories: Categories,
    *,
    alpha: float = 0.6,
    min_side: int = 256,
) -> np.ndarray:
    """Paints segments over an image: class colours, outlines between segments, class names.

    Args:
      image: [H, W, 3] uint8, RGB.
      segment_map: [H, W] integer; 0 = nothing, k = segment with class `labels[k - 1]`.
      labels: [K], classes; -1 = no segment.
      categories: names, colours and which classes are things (whose shades vary).
      alpha: opacity of the colours.
      min_side: smaller images are enlarged by a whole factor until no side is shorter.

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
    factor = max(1, -(-min_side // min(image.shape[:2])))
    size = (image.shape[1] * factor, image.shape[0] * factor)
    image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    segment_map = segment_map.repeat(factor, axis=0).repeat(factor, axis=1)
    labels = np.asarray(labels, np.int64)

    colors = np.zeros((len(labels) + 1, 3))
    opacity = np.zeros(len(labels) + 1)
    shades = [itertools.cycle(SHADES) for _ in range(len(categories))]
    for segment in _by_area(segment_map, labels):
        label = labels[segment - 1]
        shade = next(shades[label]) if categories.is_thing[label] else 0.0
        colors[segment] = _shaded(categories.colors[label], shade)
        opacity[segment] = alpha
    weight = opacity[segment_map][..., None]
    picture = (1 - weight) * image + weight * colors[segment_map]
    picture = np.clip(picture, 0, 255).round().astype(np.uint8)

    edges = _edges(segment_map)
    picture[edges] = (0.25 * picture[edges] + 0.75 * np.array(PAPER)).round()
    _write_names(picture, segment_map, labels, categories)
    return picture


def legend(labels: Sequence[int], categories: Categories) -> list[tuple[str, tuple[int, int, int]]]:
    """Name and colour of the classes among `labels`, in the order of the data set."""
    present = sorted({int(label) for label in labels if label >= 0})
    return [(categories.names[label], categories.colors[label]) for label in present]


def grid(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str] = ('image', 'ground truth', 'prediction'),
    legend: Sequence[tuple[str, tuple[int, int, int]]] = (),
    *,
    cell_width: int = 384,
) -> np.ndarray:
    """Pictures [H, W, 3] in rows and columns below column titles, with a legend at the bottom.

    Every picture is resized to `cell_width`, its proportions kept. Returns [H', W', 3] uint8, RGB.

    Raises:
      ValueError: a row does not have one picture a title.
    """
    for number, row in enumerate(rows):
        if len(row) != len(titles):
            raise ValueError(
                f'Row {number} of the grid has {len(row)} pictures for the {len(titles)} titles '
                f'{tuple(titles)}; give one picture a title.'
            )
    gap, text_height = 12, 15
    head = 3 * text_height
    cells = [[_fit_width(picture, cell_width) for picture in row] for row in rows]
    heights = [max(len(cell) for cell in row) for row in cells]
    width = gap + len(titles) * (cell_width + gap)
    entries, foot = _flow(legend, width - 2 * gap, text_height)
    canvas = np.full((head + sum(heights) + gap * len(heights) + foot, width, 3), PAPER, np.uint8)

    lefts = [gap + column * (cell_width + gap) for column in range(len(titles))]
    for left, title in zip(lefts, titles, strict=True):
        _write(canvas, title, (left + cell_width // 2, head // 2), text_height, INK)
    top = head
    for row, height in zip(cells, heights, strict=True):
        for left, cell in zip(lefts, row, strict=True):
            canvas[top : top + len(cell), left : left + cell_width] = cell
        top += height + gap
    for (name, color), (x, y, text_width) in zip(legend, entries, strict=True):
        x, y = x + gap, y + top
        corners = (x, y - text_height // 2), (x + text_height, y + text_height // 2)
        cv2.rectangle(canvas, *corners, color, cv2.FILLED)
        cv2.rectangle(canvas, *corners, INK, 1)
        _write(canvas, name, (x + text_height + 6 + text_width // 2, y), text_height, INK)
    return canvas


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Writes [H, W, 3] uint8, RGB; raises OSError if that is not possible."""
    ok, png = cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not ok:
        raise OSError(f'Cannot encode a picture of shape {image.shape} as PNG for {path}.')
    Path(path).write_bytes(png.tobytes())


def _by_area(segment_map: np.ndarray, labels: np.ndarray) -> list[int]:
    """The ids of the segments that have a class and pixels, largest first."""
    areas = np.bincount(segment_map.ravel(), minlength=len(labels) + 1)
    order = 1 + np.argsort(-areas[1:], kind='stable')
    return [int(segment) for segment in order if areas[segment] and labels[segment - 1] >= 0]


def _shaded(color: Sequence[int], shade: float) -> np.ndarray:
    """The colour mixed with white (shade > 0) or black (shade < 0)."""
    target = 255 if shade > 0 else 0
    return (1 - abs(shade)) * np.array(color, np.float64) + abs(shade) * target


def _edges(segment_map: np.ndarray) -> np.ndarray:
    """[H, W] bool, pixels whose right or lower neighbour is another segment."""
    edges = np.zeros(segment_map.shape, bool)
    edges[:, :-1] |= segment_map[:, :-1] != segment_map[:, 1:]
    edges[:-1] |= segment_map[:-1] != segment_map[1:]
    return edges


def _write_names(
    picture: np.ndarray, segment_map: np.ndarray, labels: np.ndarray, categories: Categories
) -> None:
    """Writes the class names, largest segment first, where none covers another.

    Segments much smaller than their name, and those with no room near, go without.
    """
    height, width = segment_map.shape
    text_height = int(np.clip(min(height, width) / 26, 10, 22))
    free = np.ones((height, width), np.uint8)
    for segment in _by_area(segment_map, labels):
        name = categories.names[labels[segment - 1]]
        box_width, box_height = _text_width(name, text_height) + 8, text_height + 6
        mask = (segment_map == segment).astype(np.uint8)
        if mask.sum() < 0.6 * box_width * box_height:
            continue
        # Centres around which a whole box is free; the border keeps boxes in the picture.
        box_shape = np.ones((box_height, box_width), np.uint8)
        room = cv2.erode(free, box_shape, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        # As deep inside the segment as there is room, or else as near to it.
        depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        depth -= cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)
        depth[room == 0] = -np.inf
        y, x = np.unravel_index(np.argmax(depth), depth.shape)
        if depth[y, x] < -box_width / 3:
            continue
        left, top = x - box_width // 2, y - box_height // 2
        box = np.s_[top : top + box_height, left : left + box_width]
        picture[box] = (0.35 * picture[box] + 0.65 * np.array(INK)).round()
        free[max(top - 2, 0) : top + box_height + 2, max(left - 2, 0) : left + box_width + 2] = 0
        _write(picture, name, (x, y), text_height, PAPER)


def _text_width(text: str, height: int) -> int:
    (width, _), _ = cv2.getTextSize(text, FONT, _font_scale(height) * SUPERSAMPLING, SUPERSAMPLING)
    return -(-width // SUPERSAMPLING)


def _font_scale(height: int) -> float:
    """The scale at which ascenders and descenders together are about `height` pixels high."""
    return height / 30


def _write(
    picture: np.ndarray, text: str, center: tuple[int, int], height: int, color: Sequence[int]
) -> None:
    """Writes one line of text around a centre (x, y), in place."""
    width = _text_width(text, height) + 2
    ink = np.zeros((SUPERSAMPLING * (height + 4), SUPERSAMPLING * width), np.uint8)
    origin = (SUPERSAMPLING, round(0.76 * len(ink)))
    scale = _font_scale(height) * SUPERSAMPLING
    cv2.putText(ink, text, origin, FONT, scale, 255, SUPERSAMPLING, cv2.LINE_AA)
    ink = cv2.resize(ink, (width, height + 4), interpolation=cv2.INTER_AREA)[..., None] / 255
    left, top = center[0] - width // 2, center[1] - (height + 4) // 2
    box = np.s_[max(top, 0) : top + height + 4, max(left, 0) : left + width]
    area = picture[box]
    ink = ink[max(-top, 0) :, max(-left, 0) :][: area.shape[0], : area.shape[1]]
    picture[box] = ((1 - ink) * area + ink * np.array(color)).round()


def _fit_width(picture: np.ndarray, width: int) -> np.ndarray:
    height = round(picture.shape[0] * width / picture.shape[1])
    shrinks = width < picture.shape[1]
    return cv2.resize(
        picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    )


def _flow(
    legend: Sequence[tuple[str, tuple[int, int, int]]], width: int, text_height: int
) -> tuple[list[tuple[int, int, int]], int]:
    """Left edge, middle and text width of every legend entry in lines, and the height of all."""
    line_height = 2 * text_height
    places, x, y = [], 0, line_height // 2
    for name, _ in legend:
        text_width = _text_width(name, text_height)
        entry = text_height + 6 + text_width
        if x and x + entry > width:
            x, y = 0, y + line_height
        places.append((x, y, text_width))
        x += entry + 24
    return places, y + line_height // 2 + text_height // 2 if legend else 0
