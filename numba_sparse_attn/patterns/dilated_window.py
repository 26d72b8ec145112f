"""A window with gaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..formats.pieces import make_pieces
from ._arguments import check_int, check_ints, title
from ._orders import spaced_windows
from .catalogue import entry
from .pattern import Pattern

__all__ = ["dilated_window"]


def _dilations(dilation: int | Sequence[int]) -> list[int]:
    return [dilation] if isinstance(dilation, int) else list(dilation)


def _member(i: int, j: int, n: int, window: int, dilation: int | Sequence[int]) -> bool:
    distance = abs(i - j)
    return any(distance % step == 0 and distance // step <= window for step in _dilations(dilation))


def _nnz(n: int, window: int, dilation: int | Sequence[int]) -> int:
    steps = _dilations(dilation)
    distances = {k * step for step in steps for k in range(min(window, (n - 1) // step) + 1)} if n else set()
    return sum((n - distance) * (2 if distance else 1) for distance in distances)


@entry(
    examples=[
        {"n": 48, "window": 4, "dilation": 3},
        {"n": 48, "window": 3, "dilation": [1, 2, 4]},
        {"n": 7, "window": 0, "dilation": 2},
        {"n": 7, "window": 2, "dilation": []},
        {"n": 0, "window": 2, "dilation": 2},
    ],
    member=_member,
    sample=lambda integers: {
        "n": integers(0, 20),
        "window": integers(0, 6),
        "dilation": [integers(1, 7) for _ in range(integers(1, 3))] if integers(0, 1) else integers(1, 9),
    },
    nnz=_nnz,
    scaled=lambda length: {"n": length, "window": 64, "dilation": 4},
)
def dilated_window(n: int, window: int, dilation: int | Sequence[int]) -> Pattern:
    """Every query sees every `dilation`-th key around it.

    ::

        {(i, i + k * d) : -window <= k <= window, d in dilation}

    Parameters
    ----------
    n : int
        Number of tokens.
    window : int
        Keys seen on each side besides the query's own, for each dilation.
    dilation : int or sequence of int
        Distance between neighboring keys of a window, at least 1; several give the union.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``.

    Notes
    -----
    Pairs: exactly the sum of ``max(0, n - abs(o))`` over the distinct offsets ``o = k * d``; for one
    dilation that is at most ``n * (2 * window + 1)``.

    Cost: O(n * window * d) time for each dilation; the pattern is one piece a dilation. With one dilation
    tokens are computed by their residues, in which it is a window without gaps.

    Reach: ``window * dilation`` further on each side with every layer. One dilation alone connects
    only tokens whose distance it divides; 1, 2, 4, ... together grow without holes.

    Use: in some heads or layers beside a plain window, to reach further at the same cost.

    Avoid: alone, as neighbors never meet; and several dilations at once for speed on tiles, which they leave
    mostly empty.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.dilated_window(5, 1, 2).toarray().astype(int)
    array([[1, 0, 1, 0, 0],
           [0, 1, 0, 1, 0],
           [1, 0, 1, 0, 1],
           [0, 1, 0, 1, 0],
           [0, 0, 1, 0, 1]])
    """
    n = check_int("n", n)
    window = check_int("window", window)
    if np.ndim(dilation) == 0:
        steps = np.array([check_int("dilation", dilation, low=1)])
    else:
        steps = np.unique(check_ints("dilation", dilation, low=1))
    reach = np.minimum(window, n // steps + 1) * steps
    pieces = make_pieces(rows=(0, n), columns=(0, n), differences=(-reach, reach), step=steps)
    name = title(dilated_window, n=n, window=window, dilation=dilation)
    return Pattern.from_pieces((n, n), pieces, name=name, orders=spaced_windows(n, window, steps.tolist()))
