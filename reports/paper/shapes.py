"""Blocks as boxes of a given width: what has a height, and knows what to draw where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from .breaking import Line, break_lines, longest_piece, natural_width, pieces_of
from .document import Block, Equation, Figure, Heading, Items, Paragraph, Run, Table, runs_of
from .fonts import extent, width
from .ledger import UNBREAKABLE

__all__ = [
    "SMALL_PRINTS",
    "Box",
    "Float",
    "Letters",
    "Picture",
    "Rule",
    "Shape",
    "SmallPrint",
    "front_matter",
    "set_block",
]

TEXT_SIZE = 9.0
LEADING = 10.9
CAPTION_SIZE = 7.8
CAPTION_LEADING = 9.2
LIST_SIZE = 7.8
_HEADINGS = {2: (10.8, 12.0, 4.0), 3: (9.4, 8.0, 2.5)}
#: Tried one after the other until a table fits: size, and whether it may take both columns.
_TABLE_SIZES = ((7.2, False), (6.6, False), (6.0, False), (5.7, False), (7.2, True), (6.4, True))
#: Lines of a part of a table, at most.
_MOST_LINES = 60
_CELL_GAP = 4.5
_INDENT = 9.0
_PARAGRAPH_GAP = 3.2
_FLOAT_GAP, _FLOAT_FOOT = 7.0, 6.0


class SmallPrint(NamedTuple):
    """How long tables are set: size of the letters, and whether every line begins anew."""

    size: float
    apart: bool


#: From the roomiest on.
SMALL_PRINTS = (SmallPrint(6.2, True), SmallPrint(6.2, False), SmallPrint(5.8, False))


class Letters(NamedTuple):
    """A piece of text: its distance from the left edge, and of its baseline from the upper edge."""

    x: float
    y: float
    text: str
    style: str
    size: float


class Rule(NamedTuple):
    """A horizontal line."""

    x: float
    y: float
    width: float
    thickness: float


class Picture(NamedTuple):
    """A figure, by its name, in a rectangle."""

    x: float
    y: float
    width: float
    height: float
    name: str


Shape = Letters | Rule | Picture


@dataclass(frozen=True)
class Box:
    """What is never broken.

    Attributes
    ----------
    height : float
    shapes : tuple of Shape
    above : float
        Space before it, unless it is the first of a column; may be stretched.
    keep : bool
        Whether the next box must be in the same column.
    """

    height: float
    shapes: tuple[Shape, ...]
    above: float = 0.0
    keep: bool = False


@dataclass(frozen=True)
class Float:
    """A box that may move on to where there is room; `wide` is over both columns."""

    box: Box
    wide: bool = False


def set_block(
    block: Block, column: float, page: float, pictures: dict[str, float], small: SmallPrint = SMALL_PRINTS[0]
) -> list[Box | Float]:
    """The boxes of a block.

    Parameters
    ----------
    block : Block
    column, page : float
        Widths of a column and of both.
    pictures : dict
        Heights of figures by name, as parts of a column's width.
    small : SmallPrint
        How long tables are set.
    """
    match block:
        case Heading(level, text):
            size, above, below = _HEADINGS[level]
            lines = _lines([Run(text, "bold")], column, size, size * 1.15, justified=False)
            last = replace(lines[-1], height=lines[-1].height + below)
            return [
                replace(box, keep=True, above=above * (not at)) for at, box in enumerate([*lines[:-1], last])
            ]
        case Paragraph(text):
            boxes = _paragraph(runs_of(text), column, TEXT_SIZE, LEADING, _PARAGRAPH_GAP)
            # What it announces must not be in another column.
            return [*boxes[:-1], replace(boxes[-1], keep=text.endswith((":", ",")))]
        case Items(labels, texts):
            return [box for item in zip(labels, texts, strict=True) for box in _item(*item, column)]
        case Equation(number, formula):
            return [_equation(number, formula, column)]
        case Figure(number, name, caption):
            height = pictures[name] * column
            runs = [Run(f"Figure {number}. ", "bold"), *runs_of(caption)]
            words = _stacked(_lines(runs, column, CAPTION_SIZE, CAPTION_LEADING))
            shapes = (Picture(0.0, 0.0, column, height, name), *_moved(words.shapes, 0.0, height + 3.0))
            return [Float(Box(height + 3.0 + words.height + _FLOAT_FOOT, shapes, _FLOAT_GAP))]
        case Table() if block.long:
            return list(_long_table(block, column, small))
        case Table():
            return [_table_float(part, column, page) for part in _parts(block)]


def front_matter(title: str, abstract: Sequence[str], page: float) -> Float:
    """Title and abstract over both columns."""
    size = 17.0
    shapes: list[Shape] = []
    y = 0.0
    for line in break_lines(pieces_of([Run(title, "bold")], size), page, size, justified=False):
        y += size * 1.2
        shapes += _letters(line, size, (page - line.width) / 2, y)
    y += 10.0
    inset = 0.08 * page
    for text in abstract:
        lines = break_lines(pieces_of(runs_of(text), TEXT_SIZE), page - 2 * inset, TEXT_SIZE)
        for line in lines:
            y += LEADING
            shapes += _letters(line, TEXT_SIZE, inset, y)
        y += _PARAGRAPH_GAP
    return Float(Box(y + 10.0, tuple(shapes)), wide=True)


def _letters(line: Line, size: float, x: float, y: float) -> list[Letters]:
    """Marks are raised by a third of the size."""
    return [
        Letters(x + at, y - (0.33 * size if piece.style == "mark" else 0.0), piece.text, piece.style, size)
        for at, piece in line.pieces
    ]


def _lines(
    runs: Sequence[Run],
    column: float,
    size: float,
    leading: float,
    *,
    justified: bool = True,
    indent: float = 0.0,
) -> list[Box]:
    """A box a line; the baseline is a quarter of the leading above its lower edge."""
    lines = break_lines(pieces_of(runs, size), column - indent, size, justified=justified)
    return [Box(leading, tuple(_letters(line, size, indent, 0.75 * leading))) for line in lines]


def _paragraph(
    runs: Sequence[Run], column: float, size: float, leading: float, above: float, indent: float = 0.0
) -> list[Box]:
    """Lines of which neither the first nor the last is ever alone in a column."""
    lines = _lines(runs, column, size, leading, indent=indent)
    last = len(lines) - 1
    return [
        replace(line, above=above if at == 0 else 0.0, keep=at < last and at in {0, last - 1})
        for at, line in enumerate(lines)
    ]


def _item(label: str, text: str, column: float) -> list[Box]:
    """Numbered lists are references, in smaller print."""
    plain = label == "-"
    size, leading = (TEXT_SIZE, LEADING) if plain else (LIST_SIZE, CAPTION_LEADING)
    indent = _INDENT if plain else width("00. ", "plain", size)
    boxes = _paragraph(runs_of(text), column, size, leading, 1.5, indent)
    sign = Letters(0.0 if not plain else 2.0, 0.75 * leading, "•" if plain else label, "plain", size)
    return [replace(boxes[0], shapes=(sign, *boxes[0].shapes)), *boxes[1:]]


def _equation(number: int, formula: str, column: float) -> Box:
    """Centered, its number at the right edge; set smaller if it is too wide."""
    label = f"({number})"
    room = column - width(label, "plain", TEXT_SIZE) - 6.0
    size = TEXT_SIZE + 0.5
    while extent(formula, "math", size)[0] > room and size > 6.0:
        size -= 0.25
    wide, high, deep = extent(formula, "math", size)
    baseline = 4.0 + high - deep
    shapes = (
        Letters(max(0.0, (room - wide) / 2), baseline, formula, "math", size),
        Letters(column - width(label, "plain", TEXT_SIZE), baseline, label, "plain", TEXT_SIZE),
    )
    return Box(high + 8.0, shapes, 1.0)


def _stacked(boxes: Sequence[Box]) -> Box:
    shapes: list[Shape] = []
    y = 0.0
    for number, box in enumerate(boxes):
        y += box.above if number else 0.0
        shapes += _moved(box.shapes, 0.0, y)
        y += box.height
    return Box(y, tuple(shapes))


def _moved(shapes: Sequence[Shape], x: float, y: float) -> list[Shape]:
    return [shape._replace(x=shape.x + x, y=shape.y + y) for shape in shapes]


# Tables ---------------------------------------------------------------------------------------------------


def _long_table(table: Table, column: float, small: SmallPrint) -> list[Box]:
    """What is looked up and not read: a paragraph a line, or all lines behind one another."""
    size, leading = small.size, 1.18 * small.size
    head = _lines(runs_of(table.caption), column, size + 1.0, 1.2 * (size + 1.0), justified=False)
    boxes = [replace(box, above=0.0 if at else 5.0, keep=True) for at, box in enumerate(head)]
    texts = [
        f"**{first}**{UNBREAKABLE}{' '.join(filter(None, inner))}: {last}"
        for first, *inner, last in table.lines
    ]
    if not small.apart:
        return [*boxes, *_paragraph(runs_of("; ".join(texts) + "."), column, size, leading, 0.0)]
    rows = [_lines(runs_of(text), column, size, leading, justified=False) for text in texts]
    # Neither the caption nor the first line is left behind alone.
    boxes += [replace(box, keep=at == 0 < len(rows) - 1) for at, row in enumerate(rows) for box in row]
    return boxes


def _parts(table: Table) -> list[Table]:
    """A table that would be higher than a page, as several of about equal length."""
    count = -(-len(table.lines) // _MOST_LINES)
    size = -(-len(table.lines) // max(count, 1))
    return [
        replace(
            table,
            lines=table.lines[at * size : (at + 1) * size],
            caption=f"{table.caption} Part {at + 1} of {count}." if count > 1 else table.caption,
        )
        for at in range(count)
    ]


def _table_float(table: Table, column: float, page: float) -> Float:
    for size, wide in _TABLE_SIZES:
        room = page if wide else column
        if _column_widths(table, room, size, wrapped=False):
            break
    boxes = _table(table, room, size, wrapped=wide)
    runs = [Run(f"Table {table.number}. ", "bold"), *runs_of(table.caption)]
    caption = _stacked(_lines(runs, room, CAPTION_SIZE, CAPTION_LEADING))
    whole = _stacked([replace(caption, height=caption.height + 3.0), *boxes])
    return Float(replace(whole, height=whole.height + _FLOAT_FOOT, above=_FLOAT_GAP), wide)


def _column_widths(table: Table, room: float, size: float, *, wrapped: bool) -> list[float]:
    """Widths of the columns, or nothing if they do not fit; only what is set to the left may be wrapped."""
    columns = list(zip(table.header, *table.lines, strict=True))
    cells = [[pieces_of(runs_of(cell), size) for cell in cells] for cells in columns]
    natural = [max(natural_width(pieces, size) for pieces in column) for column in cells]
    least = [
        wide if right or not wrapped else max(longest_piece(pieces) for pieces in column)
        for wide, right, column in zip(natural, table.right, cells, strict=True)
    ]
    room -= _CELL_GAP * (len(columns) - 1)
    if sum(least) > room + 1e-6:
        return []
    over = sum(natural) - room
    if over <= 0:
        return natural
    slack = sum(natural) - sum(least)
    return [wide - over * (wide - low) / slack for wide, low in zip(natural, least, strict=True)]


def _table(table: Table, room: float, size: float, *, wrapped: bool) -> list[Box]:
    """A box a line; the first is kept with the header."""
    widths = _column_widths(table, room, size, wrapped=wrapped)
    while not widths and size > 4.0:
        size -= 0.2
        widths = _column_widths(table, room, size, wrapped=wrapped)
    # A table that is narrower than its column is spread over it.
    gaps = max(1, len(widths) - 1)
    gap = (room - sum(widths)) / gaps
    lefts = [sum(widths[:at]) + gap * at for at in range(len(widths))]
    leading = 1.22 * size
    rows = []
    for number, line in enumerate([table.header, *table.lines]):
        shapes: list[Shape] = []
        height = leading
        for cell, left, wide, right in zip(line, lefts, widths, table.right, strict=True):
            runs = [
                Run(run.text, "italic" if run.style == "plain" and not number else run.style)
                for run in runs_of(cell)
            ]
            for at, found in enumerate(break_lines(pieces_of(runs, size), wide + 0.5, size, justified=False)):
                x = left + (wide - found.width if right else 0.0)
                shapes += _letters(found, size, x, (at + 0.78) * leading)
                height = max(height, (at + 1) * leading)
        if number == 0:
            shapes += [Rule(0.0, -0.5, room, 0.7), Rule(0.0, height + 1.0, room, 0.4)]
            height += 2.5
        if number == len(table.lines):
            shapes.append(Rule(0.0, height + 1.5, room, 0.7))
            height += 2.5
        rows.append(Box(height, tuple(shapes), 3.0 if number == 0 else 0.0, keep=number == 0))
    return rows
