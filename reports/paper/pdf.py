"""The document as a PDF: two columns, text as text, figures as lines. The same rows give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .appendix import APPENDIX
from .columns import Barrier, Format, Item, Placed, compose
from .document import Block, Heading, Paragraph
from .fonts import is_math, properties, rise, width
from .shapes import SMALL_PRINTS, Box, Float, Letters, Picture, Rule, SmallPrint, front_matter, set_block

__all__ = ["MOST_PAGES", "Drawing", "pages", "placed_on_pages", "write_pdf"]

#: Draws into a rectangle of a figure, which is given in inches from its lower left corner.
Drawing = Callable[[Figure, tuple[float, float, float, float]], None]

#: Of the whole report, if that can be had.
MOST_PAGES = 6
#: Fonts are embedded whole enough to be searched and copied.
_SETTINGS = {"pdf.fonttype": 42, "pdf.compression": 6, "pdf.use14corefonts": False, "text.usetex": False}
_POINTS = 72.0
_MARK_COLOR = "#5a6b7a"


def write_pdf(
    path: Path,
    blocks: Sequence[Block],
    drawings: Mapping[str, tuple[float, Drawing]],
    facts: Mapping[str, str],
) -> int:
    """Write the document and return its number of pages.

    Parameters
    ----------
    drawings : name -> (height as a part of a column's width, what draws it)
    facts : mapping
        Entries of the PDF's own description. Dates are left out, as bytes must depend on the rows only.
    """
    with matplotlib.rc_context(_SETTINGS):
        made = pages(blocks, drawings)
        with PdfPages(path, metadata={**facts, "CreationDate": None, "ModDate": None}) as file:
            for figure in made:
                file.savefig(figure)
    return len(made)


def pages(
    blocks: Sequence[Block], drawings: Mapping[str, tuple[float, Drawing]], form: Format | None = None
) -> list[Figure]:
    """A figure a page."""
    form = form or Format()
    placed = placed_on_pages(blocks, form, {name: height for name, (height, _) in drawings.items()})
    size = form.width / _POINTS, form.height / _POINTS
    figures = [Figure(figsize=size) for _ in range(_count(placed))]
    for item in placed:
        _draw(figures[item.page], form, item, drawings)
    for number, figure in enumerate(figures, 1):
        label = f"{number}"
        x = (form.width - width(label, "plain", 9.0)) / 2
        _letters(figure, form, x, form.height - 0.6 * form.foot, Letters(0, 0, label, "plain", 9.0))
    return figures


def placed_on_pages(blocks: Sequence[Block], form: Format, pictures: dict[str, float]) -> list[Placed]:
    """Every box with its place; long tables as roomy as a report of `MOST_PAGES` allows."""
    tried = []
    for small in SMALL_PRINTS:
        tried.append(compose(_flow(blocks, form, pictures, small), form))
        if _count(tried[-1]) <= MOST_PAGES:
            return tried[-1]
    return min(tried, key=_count)


def _count(placed: Sequence[Placed]) -> int:
    return 1 + max(item.page for item in placed)


def _flow(blocks: Sequence[Block], form: Format, pictures: dict[str, float], small: SmallPrint) -> list[Item]:
    """What stands before the first section is over both columns."""
    first = next(at for at, block in enumerate(blocks) if isinstance(block, Heading) and block.level > 1)
    title, *abstract = blocks[:first]
    assert isinstance(title, Heading)
    texts = [block.text for block in abstract if isinstance(block, Paragraph)]
    held: list[Box | Float] = []
    flow: list[Item] = [front_matter(title.text, texts, form.body)]
    for block in blocks[first:]:
        if isinstance(block, Heading) and block.text == APPENDIX:
            flow.append(Barrier())
        found = set_block(block, form.column, form.body, pictures, small)
        # What a heading stands over is text: a float that comes between moves behind it.
        if isinstance(found[0], Float) and isinstance(flow[-1], Box) and flow[-1].keep:
            held += found
            continue
        flow += [*found, *held]
        held = []
    return [*flow, *held]


def _draw(figure: Figure, form: Format, item: Placed, drawings: Mapping[str, tuple[float, Drawing]]) -> None:
    for shape in item.box.shapes:
        x, y = item.x + shape.x, item.y + shape.y
        match shape:
            case Letters():
                _letters(figure, form, x, y, shape)
            case Rule():
                ends: Any = ([x / form.width, (x + shape.width) / form.width], [1 - y / form.height] * 2)
                figure.add_artist(Line2D(*ends, color="black", linewidth=shape.thickness))
            case Picture():
                lower = form.height - y - shape.height
                box = (x / _POINTS, lower / _POINTS, shape.width / _POINTS, shape.height / _POINTS)
                drawings[shape.name][1](figure, box)


def _letters(figure: Figure, form: Format, x: float, y: float, shape: Letters) -> None:
    figure.text(
        x / form.width,
        1 - (y + rise(shape.text, shape.style, shape.size)) / form.height,
        f"${shape.text}$" if is_math(shape.style) else shape.text,
        fontproperties=properties(shape.style, shape.size),
        color=_MARK_COLOR if shape.style == "mark" else "black",
        va="baseline",
        ha="left",
        parse_math=is_math(shape.style),
    )
