"""Paragraphs into lines: the breaks of all lines are chosen together, and nothing is hyphenated.

Lines are filled by stretching the spaces between words. Where a line would need spaces three and a half times
as wide, because a long name comes next, it is left ragged instead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from .document import Run
from .fonts import width

__all__ = ["Line", "Piece", "break_lines", "longest_piece", "natural_width", "pieces_of"]

#: What may come between a piece and the one before it.
SPACE, OPEN, CLOSED = "space", "open", "closed"
#: Parts of a space by which it may become narrower, and the stretch that costs as much.
_SHRINK, _STRETCH = 0.28, 0.6
#: Widest space, in spaces.
_WIDEST = 3.6
#: What a break inside of a name costs; one line stretched by all of its ease costs 100.
_BREAK_COST = 400.0
#: Names longer than this may be broken behind one of these.
_LONG_NAME = 10
_BEHIND = re.compile(r"(?<=[/_.,=(\-])(?=\w)")
#: Words may be broken behind their own hyphen.
_BEHIND_HYPHEN = re.compile(r"(?<=\w\w[-–/])(?=\w\w)")


class Piece(NamedTuple):
    """What is never broken."""

    text: str
    style: str
    width: float
    joint: str


@dataclass(frozen=True)
class Line:
    """Pieces with their distance from the left edge."""

    pieces: tuple[tuple[float, Piece], ...]
    width: float


def pieces_of(runs: Sequence[Run], size: float) -> list[Piece]:
    """Words, and parts of long names, of a text."""
    found: list[Piece] = []
    joint = CLOSED
    for run in runs:
        if run.style in {"math", "mark"}:
            found.append(Piece(run.text, run.style, width(run.text, run.style, size), joint))
            joint = CLOSED
            continue
        for number, word in enumerate(re.split(r"[ \n]+", run.text)):
            joint = SPACE if number else joint
            if not word:
                continue
            for part in _parts(word, run.style):
                found.append(Piece(part, run.style, width(part, run.style, size), joint))
                joint = OPEN
            joint = CLOSED
    return found


def _parts(word: str, style: str) -> list[str]:
    if style != "code":
        return _BEHIND_HYPHEN.split(word)
    return _BEHIND.split(word) if len(word) > _LONG_NAME else [word]


def natural_width(pieces: Sequence[Piece], size: float) -> float:
    """Of one line that holds everything."""
    space = width(" ", "plain", size)
    inner = sum(space for piece in pieces[1:] if piece.joint == SPACE)
    return sum(piece.width for piece in pieces) + inner


def longest_piece(pieces: Sequence[Piece]) -> float:
    """The narrowest column that holds the text; pieces that belong together count as one."""
    widest = current = 0.0
    for piece in pieces:
        current = piece.width + (current if piece.joint == CLOSED else 0.0)
        widest = max(widest, current)
    return widest


def break_lines(pieces: Sequence[Piece], column: float, size: float, *, justified: bool = True) -> list[Line]:
    """The lines of a paragraph, none wider than the column unless a single piece is."""
    if not pieces:
        return []
    space = width(" ", "plain", size)
    count = len(pieces)
    best: list[tuple[float, int]] = [(0.0, 0)] + [(float("inf"), 0)] * count
    for begin in range(count):
        if best[begin][0] == float("inf") or (begin and pieces[begin].joint == CLOSED):
            continue
        natural, spaces = 0.0, 0
        for end in range(begin + 1, count + 1):
            piece = pieces[end - 1]
            if end - 1 > begin and piece.joint == SPACE:
                natural, spaces = natural + space, spaces + 1
            natural += piece.width
            shrink = _SHRINK * space * spaces if justified else 0.0
            # A group of pieces that is wider than the column by itself has to stand somewhere.
            if natural - shrink > column + 1e-6 and any(
                one.joint != CLOSED for one in pieces[begin + 1 : end]
            ):
                break
            if end < count and pieces[end].joint == CLOSED:
                continue
            cost = best[begin][0] + _cost(column - natural, spaces * space, last=end == count)
            if end < count and pieces[end].joint == OPEN:
                cost += _BREAK_COST
            best[end] = min(best[end], (cost, begin))
    ends = [count]
    while ends[-1]:
        ends.append(best[ends[-1]][1])
    bounds = ends[::-1]
    return [
        _set_line(pieces[begin:end], column, space, fill=justified and end < count)
        for begin, end in pairwise(bounds)
    ]


def _cost(missing: float, spaces: float, *, last: bool) -> float:
    """Of a line that misses so much of the column and has spaces of that width together."""
    if last and missing >= 0:
        return 1.0
    ease = max(spaces, 1.0) * (_STRETCH if missing >= 0 else _SHRINK)
    return 1.0 + 100.0 * (abs(missing) / ease) ** 3


def _set_line(pieces: Sequence[Piece], column: float, space: float, *, fill: bool) -> Line:
    gaps = sum(piece.joint == SPACE for piece in pieces[1:])
    natural = sum(piece.width for piece in pieces) + gaps * space
    gap = space
    if gaps and (fill or natural > column):
        filled = space + (column - natural) / gaps
        gap = filled if filled <= _WIDEST * space else space
    x, placed = 0.0, []
    for number, piece in enumerate(pieces):
        if number and piece.joint == SPACE:
            x += gap
        placed.append((x, piece))
        x += piece.width
    return Line(tuple(placed), x)
