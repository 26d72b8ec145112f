"""Indentation levels of Python source, one a line, also of source that does not parse."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from ..errors import PatternError

__all__ = ["indentation_levels"]

#: What matters outside strings: quotes, brackets, comments, and a backslash at the end of the line.
_MARKS = re.compile(r"\"\"\"|'''|[\"'#()\[\]{}]|\\$")
#: From inside a string to behind its closing quote; a backslash takes the next character along.
_CLOSINGS = {quote: re.compile(rf"(?:\\.|[^\\])*?{quote}") for quote in ('"""', "'''", '"', "'")}
_TAB = 8


def indentation_levels(source: str) -> npt.NDArray[np.int64]:
    """How deep every line of Python source is indented, counted in blocks and not in columns.

    A line that begins a statement is as deep as there are blocks open around it. Lines that continue a
    statement (inside brackets, inside a string of several lines, after a backslash) have the level of
    the line that began it. Blank lines and lines with nothing but a comment have the level of the next
    line with code; those at the end, of the last one. Tabs reach to the next multiple of 8 columns.

    Broken source is read as well as it can be: a dedent to a column that no open block has opens a block
    of its own, a string in single quotes ends with its line, a closing bracket too many is ignored.

    Parameters
    ----------
    source : str
        Text of a module; lines end with "\\n", "\\r\\n" or "\\r".

    Returns
    -------
    int64 array (lines,)
        For :func:`indentation`, as it is with one token a line, or with
        ``numpy.repeat(levels, tokens_per_line)``.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> source = "def f(a,\\n      b):\\n    if a:\\n        return b\\n\\n    return a\\n"
    >>> patterns.indentation_levels(source).tolist()
    [0, 0, 1, 2, 1, 1]
    """
    if not isinstance(source, str):
        raise PatternError(
            f"source of type {type(source).__name__}", "text (str)", "decode bytes, read files first"
        )
    lines = re.split(r"\r\n|\r|\n", source)
    if not lines[-1]:
        del lines[-1]
    columns = [0]
    levels = np.zeros(len(lines), np.int64)
    waiting = 0  # blank and comment lines before the current one
    reader = _Reader()
    for number, line in enumerate(lines):
        text = line.lstrip(" \t\f")
        if not reader.continues:
            if not text or text.startswith("#"):
                waiting += 1
                continue
            column = _column(line[: len(line) - len(text)])
            while column < columns[-1]:
                columns.pop()
            if column > columns[-1]:
                columns.append(column)
        levels[number - waiting : number + 1] = len(columns) - 1
        waiting = 0
        reader.read(line)
    levels[len(lines) - waiting :] = len(columns) - 1
    return levels


def _column(space: str) -> int:
    """Width of leading white space; a form feed starts anew, as in Python."""
    column = 0
    for character in space:
        if character == "\t":
            column += _TAB - column % _TAB
        else:
            column = 0 if character == "\f" else column + 1
    return column


class _Reader:
    """Reads lines one by one and knows whether the next one continues the statement."""

    def __init__(self) -> None:
        self._quote = ""  # of the string that the line ended in
        self._brackets = 0
        self._backslash = False

    @property
    def continues(self) -> bool:
        return bool(self._quote) or self._brackets > 0 or self._backslash

    def read(self, line: str) -> None:
        self._backslash = False
        position = 0
        while True:
            if self._quote:
                closing = _CLOSINGS[self._quote].match(line, position)
                if closing is None:
                    if len(self._quote) == 1 and not line.endswith("\\"):
                        self._quote = ""
                    return
                self._quote, position = "", closing.end()
            mark = _MARKS.search(line, position)
            if mark is None or mark.group() == "#":
                return
            position = mark.end()
            if mark.group() == "\\":
                self._backslash = True
            elif mark.group() in "([{":
                self._brackets += 1
            elif mark.group() in ")]}":
                self._brackets = max(0, self._brackets - 1)
            else:
                self._quote = mark.group()
