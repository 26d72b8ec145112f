"""Lines of source code that belong together by their indentation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from ._arguments import check_int, check_ints, title
from .catalogue import Integers, entry
from .pattern import Pattern

__all__ = ["indentation"]

#: Pairs looked at at a time: bounds the memory that a long pattern needs while its rows are made.
_CELLS = 1 << 22


def _member(i: int, j: int, levels: Sequence[int], window: int) -> bool:
    if levels[i] == levels[j] or abs(i - j) <= window:
        return True
    openers = [line for line in range(i) if levels[line] < levels[i]]
    if not openers or levels[j] != levels[openers[-1]]:
        return False
    between = range(min(j, openers[-1]), max(j, openers[-1]) + 1)
    return min(levels[line] for line in between) == levels[j]


def _sample(integers: Integers) -> dict[str, object]:
    return {"levels": [integers(0, 3) for _ in range(integers(0, 18))], "window": integers(0, 3)}


def _module(lines: int) -> list[int]:
    """Levels like those of a module with classes, methods, loops and conditions in them."""
    body = [0, 1, 1, 2, 2, 3, 3, 2, 1, 2, 2, 3, 4, 4, 3, 2, 2, 1, 2, 3, 3, 2, 0, 0]
    return [body[line % len(body)] for line in range(lines)]


@entry(
    examples=[
        {"levels": _module(48), "window": 1},
        {"levels": [0, 8, 8, 4, 4, 8, 0, 4], "window": 0},
        {"levels": [2, 1, 0, 1, 2], "window": 2},
        {"levels": [], "window": 1},
    ],
    member=_member,
    sample=_sample,
    scaled=lambda length: {"levels": _module(length), "window": 8},
)
def indentation(levels: npt.ArrayLike, window: int) -> Pattern:
    """Every line sees the lines as deep as itself, the statements around its block, and a window.

    ::

        {(i, j) : level(j) = level(i)}
        {(i, j) : level(j) = level(p) <= level(x) for all lines x from j to p}     p = opener of i
        {(i, j) : i - window <= j <= i + window}

    The opener p of a line is the nearest line before it with a lower level: the ``if`` or ``def`` whose
    block it is in. The second set is p and the statements beside p in p's own block, but not those of
    the same level elsewhere in the file. The pattern is the union of the three.

    Parameters
    ----------
    levels : int array (n,)
        Level of every line or token, at least 0; :func:`indentation_levels` reads them from source. They
        may also be columns: only their order counts.
    window : int
        Keys seen on each side besides the query's own.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``. Rows are made when they are needed.

    Notes
    -----
    Pairs: at least the sum of ``c(l)**2`` over the levels, c(l) being the lines of level l; the second
    and third set add at most the lines beside the opener and ``2 * window`` to a row. The first set alone
    is a fixed share of n**2: with half of all lines on one level the sparsity is below 75 %.

    Cost: O(pairs * d) time; the pattern is a few arrays of n numbers, its rows 4 bytes a pair.

    Reach: all lines of the own level and the way out to the outermost block, a level with every layer.

    Use: for source code and other indented text, one token a line or its lines' tokens.

    Avoid: for very long files, as the cost grows with n**2; unite a window with :func:`tree` there.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> levels = patterns.indentation_levels("def f():\\n  if a:\\n    b\\n  return\\nf()\\n")
    >>> patterns.indentation(levels, 0).toarray().astype(int)
    array([[1, 0, 0, 0, 1],
           [1, 1, 0, 1, 1],
           [0, 1, 1, 1, 0],
           [1, 1, 0, 1, 1],
           [1, 0, 0, 0, 1]])
    """
    depths = check_ints("levels", levels)
    window = check_int("window", window)
    n = len(depths)
    family = np.empty(n, np.int64)
    opener = np.empty(n, np.int64)
    lines = np.arange(n, dtype=np.int64)
    for number, depth in enumerate(np.unique(depths).tolist()):
        own, outside = depths == depth, depths < depth
        family[own] = number * (n + 1) + np.cumsum(outside)[own]
        opener[own] = np.maximum.accumulate(np.where(outside, lines, -1))[own]
    around = np.where(opener >= 0, family[opener], -1) if n else opener
    rows = partial(_rows, depths, family, around, window)
    return Pattern.from_rows((n, n), rows, name=title(indentation, levels=depths, window=window))


def _rows(
    depths: npt.NDArray[np.int64],
    family: npt.NDArray[np.int64],
    around: npt.NDArray[np.int64],
    window: int,
    begin: int,
    end: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Lines in one block and of one level are a family; ``around`` is the family of a line's opener."""
    n = len(depths)
    lines = np.arange(n, dtype=np.int64)
    counts, indices = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)]
    step = max(1, _CELLS // max(n, 1))
    for first in range(begin, end, step):
        own = lines[first : min(first + step, end), None]
        seen = depths[own] == depths
        seen |= around[own] == family
        seen |= np.abs(own - lines) <= window
        counts.append(np.count_nonzero(seen, axis=1))
        indices.append(np.nonzero(seen)[1])
    return np.cumsum(np.concatenate(counts)), np.concatenate(indices)
