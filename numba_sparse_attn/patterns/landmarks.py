"""A window and landmarks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..formats.pieces import make_pieces
from ._arguments import check_int, check_ints, title
from ._spans import runs
from .catalogue import Integers, entry
from .pattern import Pattern

__all__ = ["landmarks"]


def _nnz(n: int, window: int, positions: list[int]) -> int:
    seen = [min(n - 1, i + window) - max(0, i - window) + 1 for i in range(n)]
    return sum(seen) + sum(n - seen[position] for position in set(positions))


def _sample(integers: Integers) -> dict[str, object]:
    n = integers(1, 20)
    return {
        "n": n,
        "window": integers(0, 5),
        "positions": [integers(0, n - 1) for _ in range(integers(0, 4))],
    }


@entry(
    examples=[
        {"n": 48, "window": 4, "positions": [5, 17, 29, 41]},
        {"n": 6, "window": 0, "positions": [3, 3, 2]},
        {"n": 6, "window": 1, "positions": []},
        {"n": 0, "window": 1, "positions": []},
    ],
    member=lambda i, j, n, window, positions: any(j == p for p in positions) or -window <= j - i <= window,
    sample=_sample,
    nnz=_nnz,
    scaled=lambda length: {"n": length, "window": 128, "positions": list(range(63, length, 64))},
)
def landmarks(n: int, window: int, positions: npt.ArrayLike) -> Pattern:
    """Every query sees a window and some landmarks, which everybody sees but which see no more.

    ::

        {(i, j) : i - window <= j <= i + window  or  j in positions}

    Parameters
    ----------
    n : int
        Number of tokens.
    window : int
        Keys seen on each side besides the query's own.
    positions : int array
        The landmarks, from 0 to n - 1: ends of sentences, important tokens, centers of clusters.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``.

    Notes
    -----
    Pairs: exactly the window's plus ``n - w(p)`` for each landmark p that sees w(p) keys in its window;
    at most ``n * (2 * window + 1 + g)`` for g landmarks.

    Cost: O(n * (window + g) * d) time; the pattern is one piece and one a run of neighboring landmarks.

    Reach: after two layers, the windows of all landmarks; everything if those cover the sequence.

    Use: with a landmark at least every ``2 * window + 1`` tokens, each a digest of what lies around it.

    Avoid: where the landmarks should collect from everywhere at once; that is :func:`longformer`.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.landmarks(5, 1, [4]).toarray().astype(int)
    array([[1, 1, 0, 0, 1],
           [1, 1, 1, 0, 1],
           [0, 1, 1, 1, 1],
           [0, 0, 1, 1, 1],
           [0, 0, 0, 1, 1]])
    """
    n = check_int("n", n)
    window = check_int("window", window)
    spots = check_ints("positions", positions, high=n - 1)
    local = make_pieces(rows=(0, n), columns=(0, n), differences=(-window, window))
    seen_by_all = make_pieces(rows=(0, n), columns=runs(spots))
    name = title(landmarks, n=n, window=window, positions=spots)
    return Pattern.from_pieces((n, n), np.concatenate([local, seen_by_all]), name=name)
