"""Sections of the report: pictures, query bank and settings."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2

from simcis_jax.errors import FileError
from simcis_jax.reporting import statistics
from simcis_jax.reporting.elements import Cell, Element, element, note, section, table
from simcis_jax.reporting.run_folder import Bank, RunFolder

MOST_PICTURES = 12
PICTURE_WIDTH = 1000  # Maximum, in pixels.


def pictures(run: RunFolder) -> Element | None:
    """Sample predictions after each stage."""
    numbers = sorted(run.pictures)
    if not numbers:
        return None
    count = min(len(numbers), MOST_PICTURES)
    shown = sorted(
        {numbers[round(i * (len(numbers) - 1) / max(count - 1, 1))] for i in range(count)}
    )
    figures = []
    for stage in shown:
        uri, width, height = picture_uri(run.pictures[stage])
        text = (
            f'After stage {stage}: one validation image per row, with the image, its ground truth '
            'and the prediction.'
        )
        image = element('img', src=uri, alt=text, width=width, height=height)
        figures.append(element('figure', element('figcaption', f'after stage {stage}'), image))
    left_out = (
        f' {len(shown)} of {len(numbers)} stages are shown.' if len(shown) < len(numbers) else ''
    )
    return section(
        'Pictures',
        'pictures',
        note(
            'Image, ground truth and prediction; the images are evenly spaced among the validation '
            'images with a class seen so far.' + left_out
        ),
        element(
            'div', *figures, class_='pictures', role='region', aria_label='Pictures', tabindex='0'
        ),
    )


def picture_uri(path: Path) -> tuple[str, int, int]:
    """A picture as the data URI of a compressed JPEG, its width and its height.

    Raises:
        FileError: the file cannot be read as a picture.
    """
    picture = cv2.imread(str(path))
    if picture is None:
        raise FileError(f'{path} cannot be read as a picture; delete it and run --mode=evaluate.')
    height, width = picture.shape[:2]
    scale = min(1.0, PICTURE_WIDTH / width)
    size = (round(width * scale), max(1, round(height * scale)))
    if scale < 1:
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 80])
    return 'data:image/jpeg;base64,' + base64.b64encode(data).decode('ascii'), *size


def bank(stored: Bank) -> Element:
    """The contents of the query bank."""
    size = stored.queries.shape[1]
    found = statistics.stored_classes(stored.queries, stored.written)
    # Least separated first.
    found.sort(key=lambda c: c.nearest[0][1] / max(c.spread, 1e-9) if c.nearest else math.inf)
    rows = []
    for c in found:
        nearest = ', '.join(
            f'{stored.names[label]} {distance:.2f}' for label, distance in c.nearest
        )
        ratio = f'{c.nearest[0][1] / c.spread:.2f}' if c.nearest and c.spread > 0 else '–'
        rows.append(
            [
                stored.names[c.label],
                f'{c.num_entries} of {size}',
                f'{stored.counts[c.label]:.0f}',
                f'{c.spread:.2f}',
                ratio,
                Cell(nearest or '–', 'text'),
            ]
        )
    return section(
        'Query bank',
        'bank',
        note(
            f'After step {stored.step} of stage {stored.stage}. Pseudo-labels: number counted '
            'before the stage; classes with fewer are replayed more often. Spread: mean distance '
            'of the stored queries to their mean. Separation: distance of this mean to the '
            'nearest mean of another class, divided by the spread; a small value means that '
            'replay can confuse the two classes.'
        ),
        table(
            'Stored queries per class, least separated first',
            [
                'class',
                'entries',
                'pseudo-labels',
                'spread',
                'separation',
                Cell('nearest classes', 'text'),
            ],
            rows,
            class_='bank',
        )
        if rows
        else note('The query bank is empty.'),
    )


def settings(config: Mapping[str, Mapping[str, Any]], defaults: Mapping[str, Mapping]) -> Element:
    """All settings; those that differ from the defaults come first."""

    def flat(groups: Mapping[str, Mapping]) -> dict[str, str]:
        return {
            f'{group}.{key}': json.dumps(value, ensure_ascii=False).strip('"')
            for group, keys in groups.items()
            for key, value in keys.items()
        }

    used, known = flat(config), flat(defaults)
    different = [key for key in used if used[key] != known.get(key)]
    same = [key for key in used if key not in different]
    rows = [[key, Cell(used[key], 'text'), Cell(known.get(key, '–'), 'text')] for key in different]
    return section(
        'Settings',
        'settings',
        table(
            'Settings that differ from the defaults',
            ['key', Cell('value', 'text'), Cell('default', 'text')],
            rows,
        )
        if rows
        else note('All settings have their default values.'),
        element('h3', 'Settings with default values'),
        element(
            'ul',
            *(element('li', element('b', key), f' {used[key]}') for key in same),
            class_='settings',
        )
        if same
        else None,
    )
