"""A window whose width depends on the position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats.pieces import make_pieces
from ._arguments import check_ints, title
from .catalogue import Integers, entry
from .pattern import Pattern

__all__ = ["adaptive_window"]


def _sides(width: int | Sequence[int]) -> tuple[int, int]:
    return (width, width) if isinstance(width, int) else (width[0], width[1])


def _member(i: int, j: int, widths: Sequence[Any]) -> bool:
    left, right = _sides(widths[i])
    return j in range(i - left, i + right + 1)


def _nnz(widths: Sequence[Any]) -> int:
    sides = [_sides(width) for width in widths]
    return sum(min(len(sides) - 1, i + right) - max(0, i - left) + 1 for i, (left, right) in enumerate(sides))


def _sample(integers: Integers) -> dict[str, Any]:
    n = integers(0, 16)
    if integers(0, 1):
        return {"widths": [integers(0, 5) for _ in range(n)]}
    return {"widths": [(integers(0, 2), integers(0, 17)) for _ in range(n)]}


@entry(
    examples=[
        {"widths": [1] * 12 + [5] * 12 + [2] * 12},
        {"widths": [(0, 0), (1, 3), (1, 3), (0, 9), (4, 0)]},
        {"widths": []},
    ],
    member=_member,
    sample=_sample,
    nnz=_nnz,
    scaled=lambda length: {"widths": [(16, 64, 256)[i * 24 // length % 3] for i in range(length)]},
)
def adaptive_window(widths: npt.ArrayLike) -> Pattern:
    """A sliding window with a width for every query.

    ::

        {(i, j) : i - left[i] <= j <= i + right[i]}

    Parameters
    ----------
    widths : int array (n,) or (n, 2)
        One width a query, for both sides; or (left, right) a query.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``.

    Notes
    -----
    Pairs: exactly the sum of ``min(n - 1, i + right[i]) - max(0, i - left[i]) + 1``.

    Cost: O(sum(widths) * d) time; the pattern is one piece a run of queries with equal widths.

    Reach: with every layer, the width at each position passed through.

    Use: where some places need more context than others: learned spans, long sentences, code bodies.

    Avoid: for one width a head; that is a ``sliding_window`` a head.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.adaptive_window([0, 1, 2, 0]).toarray().astype(int)
    array([[1, 0, 0, 0],
           [1, 1, 1, 0],
           [1, 1, 1, 1],
           [0, 0, 0, 1]])
    """
    if _in_pairs(widths):
        sides = check_ints("widths", widths, columns=2)
    else:
        sides = np.repeat(check_ints("widths", widths)[:, None], 2, axis=1)
    n = len(sides)
    changes = np.ones(n, np.bool_)
    changes[1:] = (sides[1:] != sides[:-1]).any(axis=1)
    begins = np.flatnonzero(changes)
    left, right = sides[begins].T
    rows = (begins, np.append(begins, n)[1:])
    pieces = make_pieces(rows=rows, columns=(0, n), differences=(-left, right))
    return Pattern.from_pieces((n, n), pieces, name=title(adaptive_window, widths=widths))


def _in_pairs(widths: Any) -> bool:
    if isinstance(widths, np.ndarray):
        return widths.ndim == 2
    return isinstance(widths, Sequence) and len(widths) > 0 and np.ndim(widths[0]) == 1
