"""Sections about what a run holds beside numbers over time: pictures, query bank, settings."""

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
PICTURE_WIDTH = 1000  # Pixels.


def pictures(run: RunFolder) -> Element | None:
    """Sample pictures through the stages."""
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
            f'After stage {stage}: validation images in rows; in columns the image, its ground '
            'truth and what the model predicts.'
        )
        image = element('img', src=uri, alt=text, width=width, height=height)
        figures.append(element('figure', element('figcaption', f'after stage {stage}'), image))
    left_out = f' {len(shown)} of {len(numbers)} stages.' if len(shown) < len(numbers) else ''
    return section(
        'Pictures',
        'pictures',
        note(
            'Each time from all over the validation images that hold a class seen so far.'
            + left_out
        ),
        element(
            'div', *figures, class_='pictures', role='region', aria_label='Pictures', tabindex='0'
        ),
    )


def picture_uri(path: Path) -> tuple[str, int, int]:
    """A picture as a data URI that is much smaller than the file, its width and its height.

    Raises:
        FileError: it cannot be read.
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
    """What the query bank holds."""
    size = stored.queries.shape[1]
    found = statistics.stored_classes(stored.queries, stored.written)
    # Those that are hardest to tell apart come first.
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
            f'After step {stored.step} of stage {stored.stage}. Spread: mean distance of the '
            'stored queries to their mean. Separation: distance of that mean to the nearest mean '
            'of another class, over the spread; where it is small, replay can confuse the two. '
            'Pseudo-labels: counted before the stage; classes with few are replayed more.'
        ),
        table(
            'Stored queries of each class, least separated first',
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
        else note('It is empty.'),
    )


def settings(config: Mapping[str, Mapping[str, Any]], defaults: Mapping[str, Mapping]) -> Element:
    """All settings, those that differ from the defaults first."""

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
            'What differs from the defaults',
            ['key', Cell('value', 'text'), Cell('default', 'text')],
            rows,
        )
        if rows
        else note('Nothing differs from the defaults.'),
        element('h3', 'As by default'),
        element(
            'ul',
            *(element('li', element('b', key), f' {used[key]}') for key in same),
            class_='settings',
        )
        if same
        else None,
    )
