"""The filled text as a document: blocks, and inside of paragraphs runs of one style.

The Markdown that is understood: ``#`` headings, paragraphs, ``-`` and ``1.`` lists, tables, and in a line
``**bold**``, ``*italic*``, `` `code` ``, ``$formula$`` and ``^mark^``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

__all__ = [
    "Block",
    "Equation",
    "Figure",
    "Heading",
    "Items",
    "Paragraph",
    "Run",
    "Table",
    "parse",
    "runs_of",
]


class Run(NamedTuple):
    """Text of one style: "plain", "bold", "italic", "code", "math" or "mark"."""

    text: str
    style: str


@dataclass(frozen=True)
class Heading:
    """Level 1 is the title."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """Text without line breaks."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list; `labels` are "-" or numbers."""

    labels: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Equation:
    """A formula of its own line."""

    number: int
    formula: str


@dataclass(frozen=True)
class Figure:
    """A picture that :mod:`graphics` draws under its name."""

    number: int
    name: str
    caption: str


@dataclass(frozen=True)
class Table:
    """Cells are set to the right or to the left; a long table has no number and its lines run on."""

    number: int
    caption: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    right: tuple[bool, ...]
    long: bool = False


Block = Heading | Paragraph | Items | Equation | Figure | Table

_INLINE = re.compile(
    r"`(?P<code>[^`]+)`|\$(?P<math>[^$]+)\$|\^(?P<mark>\d+)\^|\*\*(?P<bold>.+?)\*\*|\*(?P<italic>[^*]+?)\*"
)
_ITEM = re.compile(r"^(-|\d+\.) +")


def parse(text: str) -> list[Block]:
    """Blocks of a text whose placeholders are filled."""
    counts = {"figure": 0, "table": 0, "longtable": 0, "equation": 0}
    blocks: list[Block] = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        if line.startswith(":::"):
            end = next(number for number in range(at + 1, len(lines)) if lines[number] == ":::")
            kind, name = line.removeprefix(":::").split()
            counts[kind] += 1
            blocks.append(_numbered(kind, name, counts[kind], lines[at + 1 : end]))
            at = end + 1
            continue
        if not line.strip():
            at += 1
            continue
        end = at
        while end < len(lines) and lines[end].strip() and not lines[end].startswith(":::"):
            end += 1
        blocks.append(_block(lines[at:end]))
        at = end
    return blocks


def _numbered(kind: str, name: str, number: int, lines: list[str]) -> Block:
    if kind == "equation":
        return Equation(number, " ".join(line.strip() for line in lines))
    rows = [line for line in lines if line.startswith("|")]
    caption = " ".join(line.strip() for line in lines if not line.startswith("|")).strip()
    if kind == "figure":
        return Figure(number, name, caption)
    header, rule, *body = (tuple(cell.strip() for cell in row.strip("|").split("|")) for row in rows)
    right = tuple(cell.endswith(":") for cell in rule)
    return Table(number, caption, header, tuple(body), right, kind == "longtable")


def _block(lines: list[str]) -> Block:
    if match := re.match(r"(#+) +(.*)", lines[0]):
        return Heading(len(match[1]), match[2])
    if _ITEM.match(lines[0]):
        labels: list[str] = []
        texts: list[str] = []
        for line in lines:
            if match := _ITEM.match(line):
                labels.append(match[1])
                texts.append(line[match.end() :])
            else:
                texts[-1] += " " + line.strip()
        return Items(tuple(labels), tuple(texts))
    return Paragraph(" ".join(line.strip() for line in lines))


def runs_of(text: str) -> list[Run]:
    """Runs of one style; bold and italic text may hold marks, code and formulas.

    >>> runs_of("a *b* `c_d`^3^")
    [Run(text='a ', style='plain'), Run(text='b', style='italic'), Run(text=' ', style='plain'), \
Run(text='c_d', style='code'), Run(text='3', style='mark')]
    """
    found: list[Run] = []
    at = 0
    for match in _INLINE.finditer(text):
        found.append(Run(text[at : match.start()], "plain"))
        style = match.lastgroup or "plain"
        inner = match[style]
        if style in {"bold", "italic"}:
            found += [run if run.style != "plain" else Run(run.text, style) for run in runs_of(inner)]
        else:
            found.append(Run(inner, style))
        at = match.end()
    found.append(Run(text[at:], "plain"))
    joined = (
        Run("".join(run.text for run in group), style)
        for style, group in groupby(found, key=lambda run: run.style)
    )
    return [run for run in joined if run.text]
