"""Source code and documents: a window, the headers of enclosing scopes and their neighbors, landmarks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import PatternError
from ._arguments import check_int, check_ints, title
from ._spans import pairs_to_rows, spread
from .catalogue import Integers, entry
from .pattern import Pattern

__all__ = ["outline"]


def _member(
    i: int,
    j: int,
    levels: Sequence[int],
    lengths: Sequence[int],
    window: int,
    header: int,
    siblings: int,
    landmarks: Sequence[int] = (),
) -> bool:
    if abs(i - j) <= window or j in landmarks:
        return True
    owners = [line for line, length in enumerate(lengths) for _ in range(length)]
    if j - owners.index(owners[j]) >= header:
        return False

    def opener(line: int) -> int:
        return max((other for other in range(line) if levels[other] < levels[line]), default=-1)

    openers = {opener(line) for line in range(len(levels))} - {-1}
    scope, target = owners[i], owners[j]
    while scope >= 0:
        beside = [line for line in sorted(openers) if opener(line) == opener(scope) and line != scope]
        before, after = [b for b in beside if b < scope], [b for b in beside if b > scope]
        if target in before[max(0, len(before) - siblings) :] or target in after[:siblings]:
            return True
        scope = opener(scope)
        if scope == target:
            return True
    return False


def _sample(integers: Integers) -> dict[str, Any]:
    lines = integers(0, 8)
    lengths = [integers(0, 4) for _ in range(lines)]
    n = sum(lengths)
    return {
        "levels": [integers(0, 3) for _ in range(lines)],
        "lengths": lengths,
        "window": integers(0, 2),
        "header": integers(0, 3),
        "siblings": integers(0, 2),
        "landmarks": [integers(0, n - 1) for _ in range(integers(0, 2))] if n else [],
    }


def _module(lines: int) -> list[int]:
    """Levels like those of a module with classes, methods, loops and conditions in them."""
    body = [0, 1, 1, 2, 2, 3, 3, 2, 1, 2, 2, 3, 4, 4, 3, 2, 2, 1, 2, 3, 3, 2, 0, 0]
    return [body[line % len(body)] for line in range(lines)]


@entry(
    examples=[
        {
            "levels": _module(24),
            "lengths": [2] * 24,
            "window": 3,
            "header": 2,
            "siblings": 1,
            "landmarks": [0],
        },
        {"levels": [0, 1, 1, 0, 1], "lengths": [3, 0, 2, 1, 4], "window": 0, "header": 1, "siblings": 2},
        {"levels": [2, 1, 0, 1, 2], "lengths": [2] * 5, "window": 1, "header": 5, "siblings": 0},
        {"levels": [], "lengths": [], "window": 1, "header": 1, "siblings": 1},
    ],
    member=_member,
    sample=_sample,
    scaled=lambda length: {
        "levels": _module(length // 8),
        "lengths": [8] * (length // 8),
        "window": 64,
        "header": 8,
        "siblings": 2,
        "landmarks": list(range(0, 8 * (length // 8), 512)),
    },
)
def outline(
    levels: npt.ArrayLike,
    lengths: npt.ArrayLike,
    window: int,
    header: int,
    siblings: int,
    *,
    landmarks: npt.ArrayLike = (),
) -> Pattern:
    """Every token sees a window, the headers of its scopes and of their neighbors, and landmarks.

    ::

        {(i, j) : i - window <= j <= i + window}
        {(i, j) : j in header(s), s encloses line(i)}
        {(i, j) : j in header(t), t beside s, s = line(i) or s encloses line(i)}
        {(i, j) : j in landmarks}

    A line opens a block if the line after it is deeper; the opener of a line is the nearest line before it
    with a lower level, and what encloses a line is its opener, the opener's opener, and so on up to the
    root. Beside a line are the openers with the same opener: the `siblings` nearest before it and the
    `siblings` nearest after it. header(s) are the first `header` tokens of line s. The pattern is the union
    of the four sets: what a reader keeps in sight who scrolls through a file with its outline open.

    Parameters
    ----------
    levels : int array (lines,)
        Level of every line, at least 0; :func:`indentation_levels` reads them from source. For a document,
        the depth of the heading that a paragraph is under, and one less for the heading itself.
    lengths : int array (lines,)
        Tokens of every line; their sum is n.
    window : int
        Keys seen on each side besides the query's own.
    header : int
        Tokens of a header that are seen, from its start.
    siblings : int
        Headers seen on each side of every scope, in the block that the scope is in.
    landmarks : int array, optional
        Tokens that everybody sees, chosen by content.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``. Rows are made when they are needed.

    Notes
    -----
    Pairs: at most ``n * (2 * window + 1 + header * (D + 2 * siblings * (D + 1)) + g)`` for D enclosing
    scopes and g landmarks; the depth of a program does not grow with its length, so this is O(n).

    Cost: O(pairs * d) time; the pattern is a few arrays of one number a line, its rows 4 bytes a pair.

    Reach: two layers lead from any token to the headers of every scope around it and beside those, a layer
    more to their bodies by way of the window; the root's headers join all parts of a file.

    Use: for source code and structured documents, where what matters far away is named in a header.

    Avoid: for text without structure: with one level for all lines this is :func:`landmarks`.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.outline([0, 1, 0, 1], [2, 2, 2, 2], 0, header=1, siblings=1).toarray().astype(int)
    array([[1, 0, 0, 0, 1, 0, 0, 0],
           [0, 1, 0, 0, 1, 0, 0, 0],
           [1, 0, 1, 0, 1, 0, 0, 0],
           [1, 0, 0, 1, 1, 0, 0, 0],
           [1, 0, 0, 0, 1, 0, 0, 0],
           [1, 0, 0, 0, 0, 1, 0, 0],
           [1, 0, 0, 0, 1, 0, 1, 0],
           [1, 0, 0, 0, 1, 0, 0, 1]])
    """
    depths = check_ints("levels", levels)
    sizes = check_ints("lengths", lengths)
    if len(depths) != len(sizes):
        raise PatternError(
            f"{len(depths)} levels and {len(sizes)} lengths", "one of each for every line", "correct either"
        )
    n = int(sizes.sum())
    marks = np.unique(check_ints("landmarks", landmarks, high=n - 1)) if np.size(landmarks) else None
    opener = _openers(depths)
    openers = np.unique(opener[opener >= 0])
    lines = _Lines(
        starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        opener=opener.tolist(),
        beside=_by_opener(openers, opener),
        header=check_int("header", header),
        siblings=check_int("siblings", siblings),
    )
    rows = partial(
        _rows, lines, check_int("window", window), np.zeros(0, np.int64) if marks is None else marks
    )
    name = title(
        outline,
        levels=depths,
        lengths=sizes,
        window=window,
        header=header,
        siblings=siblings,
        landmarks=[] if marks is None else marks,
    )
    return Pattern.from_rows((n, n), rows, name=name)


@dataclass(frozen=True)
class _Lines:
    """The lines of a text: first token of each (and n), openers, and who lies beside whom."""

    starts: npt.NDArray[np.int64]
    opener: list[int]
    beside: dict[int, list[int]]
    header: int
    siblings: int

    def seen_from(self, line: int) -> list[int]:
        """The lines whose headers the tokens of a line see; repeated ones do no harm."""
        found: list[int] = []
        scope = line
        while scope >= 0:
            around = self.opener[scope]
            block = self.beside.get(around, [])
            place = bisect_left(block, scope)
            after = place + (place < len(block) and block[place] == scope)
            found += block[max(0, place - self.siblings) : place] + block[after : after + self.siblings]
            if around >= 0:
                found.append(around)
            scope = around
        return found


def _openers(depths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The nearest line before every line with a lower level, or -1."""
    opener = np.full(len(depths), -1, np.int64)
    path: list[tuple[int, int]] = []
    for line, depth in enumerate(depths.tolist()):
        while path and path[-1][0] >= depth:
            path.pop()
        if path:
            opener[line] = path[-1][1]
        path.append((depth, line))
    return opener


def _by_opener(lines: npt.NDArray[np.int64], opener: npt.NDArray[np.int64]) -> dict[int, list[int]]:
    """Lines, ascending, by the line that opens the block that they are in."""
    found: dict[int, list[int]] = {}
    for line in lines.tolist():
        found.setdefault(int(opener[line]), []).append(line)
    return found


def _rows(
    lines: _Lines, window: int, landmarks: npt.NDArray[np.int64], begin: int, end: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    n = int(lines.starts[-1])
    tokens = np.arange(begin, end, dtype=np.int64)
    width = min(window, n)
    owner, number = spread(np.full(len(tokens), 2 * width + 1))
    near = tokens[owner] - width + number
    inside = (near >= 0) & (near < n)
    queries, keys = [tokens[owner][inside]], [near[inside]]
    owner, number = spread(np.full(len(tokens), len(landmarks)))
    queries.append(tokens[owner])
    keys.append(landmarks[number])

    starts = lines.starts
    first = int(np.searchsorted(starts, begin, side="right")) - 1
    last = int(np.searchsorted(starts, end, side="left"))
    seen = [(line, target) for line in range(first, last) for target in lines.seen_from(line)]
    if seen:
        line, target = np.array(seen, np.int64).T
        low, high = np.maximum(starts[line], begin), np.minimum(starts[line + 1], end)
        heads = np.minimum(starts[target + 1] - starts[target], lines.header)
        pair, number = spread(np.maximum(high - low, 0) * heads)
        queries.append(low[pair] + number // heads[pair])
        keys.append(starts[target[pair]] + number % heads[pair])
    return pairs_to_rows(begin, end, n, np.concatenate(queries), np.concatenate(keys))
