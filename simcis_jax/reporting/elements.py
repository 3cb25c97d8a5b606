"""HTML and SVG as a tree of elements, so that all text is escaped."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from collections.abc import Sequence

Element = ET.Element
Content = Element | str | None


def element(tag: str, *children: Content, **attributes: object) -> Element:
    """An element with children and attributes; those that are None are left out.

    Underscores in attribute names become hyphens and a trailing one is dropped: class_, aria_label.
    """
    names = {
        name.rstrip('_').replace('_', '-'): str(value)
        for name, value in attributes.items()
        if value is not None
    }
    made = Element(tag, names)
    for child in children:
        if isinstance(child, Element):
            made.append(child)
        elif child is not None and len(made):
            made[-1].tail = (made[-1].tail or '') + child
        elif child is not None:
            made.text = (made.text or '') + child
    return made


@dataclasses.dataclass(frozen=True)
class Cell:
    """A table cell with a class, a style or an element as content."""

    content: Content
    class_: str | None = None
    style: str | None = None


def table(
    caption: str,
    head: Sequence[str | Cell],
    rows: Sequence[Sequence[str | Cell]],
    *,
    foot: Sequence[str] = (),
    class_: str = '',
) -> Element:
    """A table in a scrollable box; the first cell of each row is its header."""

    def make(tag: str, cell: str | Cell, scope: str | None = None) -> Element:
        cell = cell if isinstance(cell, Cell) else Cell(cell)
        return element(tag, cell.content, scope=scope, class_=cell.class_, style=cell.style)

    def row(cells: Sequence[str | Cell]) -> Element:
        first, *rest = cells
        return element('tr', make('th', first, 'row'), *(make('td', cell) for cell in rest))

    content = element(
        'table',
        element('caption', caption),
        element('thead', element('tr', *(make('th', cell, 'col') for cell in head))),
        element('tbody', *map(row, rows)),
        element('tfoot', row(foot)) if foot else None,
        class_=class_ or None,
    )
    # A scrollable box must be focusable for keyboard users, and a focusable one needs a name.
    return element('div', content, class_='scroll', role='region', aria_label=caption, tabindex='0')


def section(title: str, name: str, *content: Element | str | None) -> Element:
    """A section with a heading and an id to link to."""
    heading = element('h2', title, id=f'{name}-title')
    return element('section', heading, *content, id=name, aria_labelledby=f'{name}-title')


def note(text: str) -> Element:
    """A paragraph of explanation."""
    return element('p', text, class_='note')


def to_html(root: Element) -> str:
    """The page as ASCII text, which is valid in every encoding."""
    return '<!DOCTYPE html>\n' + ET.tostring(root, 'us-ascii', 'html').decode('ascii') + '\n'
