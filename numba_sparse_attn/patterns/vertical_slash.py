"""Chosen keys and chosen diagonals, causal."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..formats.pieces import UNBOUNDED, make_pieces
from ._arguments import check_int, check_ints, title
from ._spans import runs
from .catalogue import Integers, entry
from .pattern import Pattern

__all__ = ["vertical_slash"]


def _nnz(n: int, columns: list[int], offsets: list[int]) -> int:
    lines = sum(n - value for chosen in (set(columns), set(offsets)) for value in chosen)
    return lines - sum(column + offset < n for column in set(columns) for offset in set(offsets))


def _sample(integers: Integers) -> dict[str, object]:
    n = integers(1, 20)
    some = [[integers(0, n - 1) for _ in range(integers(0, 4))] for _ in range(2)]
    return {"n": n, "columns": some[0], "offsets": some[1]}


@entry(
    examples=[
        {"n": 40, "columns": [0, 1, 17], "offsets": [0, 1, 2, 12]},
        {"n": 6, "columns": [], "offsets": [5]},
        {"n": 6, "columns": [5, 2, 2], "offsets": []},
        {"n": 0, "columns": [], "offsets": []},
    ],
    member=lambda i, j, n, columns, offsets: i >= j and (j in columns or i - j in offsets),
    sample=_sample,
    nnz=_nnz,
    scaled=lambda length: {
        "n": length,
        "columns": [0, 1, 2, 3, *range(100, length, 500)],
        "offsets": [*range(64), *range(300, length, 1000)],
    },
)
def vertical_slash(n: int, columns: npt.ArrayLike, offsets: npt.ArrayLike) -> Pattern:
    """Every query sees some chosen keys and the keys at some chosen distances before it.

    ::

        {(i, j) : j <= i  and  (j in columns  or  i - j in offsets)}

    Parameters
    ----------
    n : int
        Number of tokens.
    columns : int array
        Keys seen by every query after them (the vertical lines), from 0 to n - 1.
    offsets : int array
        Distances ``i - j`` (the slashes), from 0 to n - 1; 0 is the diagonal.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``.

    Notes
    -----
    Pairs: exactly the sum of ``n - c`` over the columns plus that of ``n - o`` over the offsets, less
    the crossings with ``c + o < n``.

    Cost: O(n * (columns + offsets) * d) time; the pattern is one piece a run of neighboring columns or
    offsets.

    Reach: what the offsets sum up to, and the columns always.

    Use: for prefill with lines estimated from the last queries, as in MInference; a set a head.

    Avoid: many lines without neighbors, which touch a tile for every few pairs.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.vertical_slash(5, [0], [0, 2]).toarray().astype(int)
    array([[1, 0, 0, 0, 0],
           [1, 1, 0, 0, 0],
           [1, 0, 1, 0, 0],
           [1, 1, 0, 1, 0],
           [1, 0, 1, 0, 1]])
    """
    n = check_int("n", n)
    verticals = check_ints("columns", columns, high=n - 1)
    slashes = check_ints("offsets", offsets, high=n - 1)
    nearest, past_furthest = runs(slashes)
    pieces = [
        make_pieces(rows=(0, n), columns=runs(verticals), differences=(-UNBOUNDED, 0)),
        make_pieces(rows=(0, n), columns=(0, n), differences=(1 - past_furthest, -nearest)),
    ]
    name = title(vertical_slash, n=n, columns=verticals, offsets=slashes)
    return Pattern.from_pieces((n, n), np.concatenate(pieces), name=name)
