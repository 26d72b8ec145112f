"""The document as Markdown: what ``report.md`` holds."""

from __future__ import annotations

import re
from collections.abc import Sequence

from reports.report_tables import markdown_table

from .document import Block, Equation, Figure, Heading, Items, Paragraph, Table
from .ledger import UNBREAKABLE

__all__ = ["markdown"]


def markdown(blocks: Sequence[Block]) -> str:
    """The text for readers without the PDF; marks are raised numbers, pictures are files."""
    return "\n\n".join(map(_text, blocks)) + "\n"


def _text(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {_marks(text)}"
        case Paragraph(text):
            return _marks(text)
        case Items(labels, texts):
            return "\n".join(f"{label} {_marks(text)}" for label, text in zip(labels, texts, strict=True))
        case Equation(number, formula):
            return f"$$\n{formula} \\qquad ({number})\n$$"
        case Figure(number, name, caption):
            return f"![Figure {number}](figures/paper_{name}.png)\n\n**Figure {number}.** {_marks(caption)}"
        case Table(number, caption, header, lines, long=long):
            table = markdown_table(
                [_marks(cell) for cell in header], [[_marks(cell) for cell in line] for line in lines]
            )
            return f"{'' if long else f'**Table {number}.** '}{_marks(caption)}\n\n{table}"


def _marks(text: str) -> str:
    return re.sub(r"\^(\d+)\^", r"<sup>\1</sup>", text).replace(UNBREAKABLE, " ")
