"""A band of diagonals."""

from __future__ import annotations

from ..formats.pieces import UNBOUNDED, make_pieces
from ._arguments import check_alignment, check_int, title
from .catalogue import entry
from .pattern import Pattern

__all__ = ["band"]


def _member(
    i: int,
    j: int,
    n: int,
    left: int | None,
    right: int | None,
    n_keys: int | None = None,
    align: str = "bottom-right",
) -> bool:
    center = i if align == "top-left" or n_keys is None else i + (n_keys - n)
    return (left is None or center - left <= j) and (right is None or j <= center + right)


def _nnz(
    n: int, left: int | None, right: int | None, n_keys: int | None = None, align: str = "bottom-right"
) -> int:
    keys = n if n_keys is None else n_keys
    present = keys - n if align == "bottom-right" else 0
    low = -n if left is None else max(-n, present - left)
    high = keys if right is None else min(keys, present + right)
    return sum(max(0, min(n, keys - offset) - max(0, -offset)) for offset in range(low, high + 1))


@entry(
    examples=[
        {"n": 32, "left": 6, "right": 2},
        {"n": 9, "left": None, "right": 1},
        {"n": 3, "left": 2, "right": 0, "n_keys": 8},
        {"n": 8, "left": 1, "right": 1, "n_keys": 3},
        {"n": 6, "left": 1, "right": 2, "n_keys": 9, "align": "top-left"},
        {"n": 0, "left": 1, "right": 1},
    ],
    member=_member,
    sample=lambda integers: {
        "n": integers(0, 12),
        "left": integers(0, 14) if integers(0, 4) else None,
        "right": integers(0, 14) if integers(0, 4) else None,
        "n_keys": integers(0, 12),
        "align": ("bottom-right", "top-left")[integers(0, 1)],
    },
    nnz=_nnz,
    scaled=lambda length: {"n": length, "left": 256, "right": 64},
)
def band(
    n: int, left: int | None, right: int | None, *, n_keys: int | None = None, align: str = "bottom-right"
) -> Pattern:
    """Every query sees some keys before it and some after it, not necessarily as many.

    ::

        {(i, j) : p - left <= j <= p + right}
        p = i + n_keys - n     align="bottom-right"
        p = i                  align="top-left"

    Parameters
    ----------
    n : int
        Number of queries.
    left, right : int or None
        How many keys before and after position p are seen; None sets no limit on that side.
    n_keys : int, optional
        Number of keys; `n` if not given.
    align : {"bottom-right", "top-left"}
        What p is: counted from the last key, as in decoding with a cache, or from the first.

    Returns
    -------
    Pattern
        Of shape ``(n, n_keys)``.

    Notes
    -----
    Pairs: exactly the sum over the differences o of the band of
    ``max(0, min(n, n_keys - o) - max(0, -o))``; at most ``n * (left + right + 1)``.

    Cost: O(n * (left + right) * d) time; the pattern is one piece.

    Reach: `left` further back and `right` further ahead with every layer.

    Use: for windows that are not symmetric, and for any window where queries and keys differ in number.

    Avoid: where distant tokens must meet within few layers; add global tokens or a stride.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.band(4, 2, 0).toarray().astype(int)
    array([[1, 0, 0, 0],
           [1, 1, 0, 0],
           [1, 1, 1, 0],
           [0, 1, 1, 1]])
    """
    n = check_int("n", n)
    keys = n if n_keys is None else check_int("n_keys", n_keys)
    present = check_alignment(n, keys, align)
    low = -UNBOUNDED if left is None else present - check_int("left", left)
    high = UNBOUNDED if right is None else present + check_int("right", right)
    pieces = make_pieces(rows=(0, n), columns=(0, keys), differences=(low, high))
    name = title(band, n=n, left=left, right=right, n_keys=n_keys, align=align)
    return Pattern.from_pieces((n, keys), pieces, name=name)
