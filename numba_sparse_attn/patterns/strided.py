"""A window and every stride-th key."""

from __future__ import annotations

import numpy as np

from ..formats.pieces import UNBOUNDED, make_pieces
from ._arguments import check_flag, check_int, title
from ._orders import period_grid
from .catalogue import Integers, entry
from .pattern import Pattern

__all__ = ["sample_strided", "strided"]


def _nnz(n: int, stride: int, window: int, causal: bool = False) -> int:
    distances = set(range(min(window + 1, n))) | set(range(0, n, stride))
    return sum((n - distance) * (1 if causal or distance == 0 else 2) for distance in distances)


def sample_strided(integers: Integers) -> dict[str, int | bool]:
    """Small arguments of ``strided`` and of ``strided_heads``."""
    arguments = {"n": integers(0, 20), "stride": integers(1, 6), "window": integers(0, 6)}
    return {**arguments, "causal": bool(integers(0, 1))}


@entry(
    examples=[
        {"n": 48, "stride": 8, "window": 4},
        {"n": 48, "stride": 8, "window": 8, "causal": True},
        {"n": 7, "stride": 1, "window": 0},
        {"n": 7, "stride": 50, "window": 0},
        {"n": 0, "stride": 2, "window": 1},
    ],
    member=lambda i, j, n, stride, window, causal=False: (
        (abs(i - j) <= window or abs(i - j) % stride == 0) and not (causal and j > i)
    ),
    sample=sample_strided,
    nnz=_nnz,
    scaled=lambda length: {"n": length, "stride": 64, "window": 64},
)
def strided(n: int, stride: int, window: int, *, causal: bool = False) -> Pattern:
    """Every query sees a window and every `stride`-th key from its own.

    ::

        {(i, j) : i - window <= j <= i + window  or  j - i = 0 (mod stride)}
        ... and j <= i                                                          causal=True

    Parameters
    ----------
    n : int
        Number of tokens.
    stride : int
        Distance between the keys of the strided part, at least 1.
    window : int
        Keys seen on each side besides the query's own.
    causal : bool
        Look back only. With ``window = stride`` this is the strided pattern of the Sparse Transformer.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``; :func:`strided_heads` gives both parts to separate heads.

    Notes
    -----
    Pairs: exactly the sum of ``n - abs(o)`` over the differences o that are at most `window` in size
    or multiples of `stride`; at most ``n * (2 * window + 1 + n / stride)``.

    Cost: O(n * (window + n / stride) * d) time, O(n * sqrt(n) * d) with ``stride = window = sqrt(n)``;
    the pattern is two pieces, but its tiles are as many as those of dense attention; four times fewer in
    boxes of a grid with lines of `stride` tokens, in which they are computed where that pays.

    Reach: everything after two layers if ``window >= stride - 1``: one step in the window, the rest by
    strides.

    Use: for data with a period, such as images (stride = width) and music.

    Avoid: for text, where the stride falls on arbitrary words.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.strided(6, 3, 1, causal=True).toarray().astype(int)
    array([[1, 0, 0, 0, 0, 0],
           [1, 1, 0, 0, 0, 0],
           [0, 1, 1, 0, 0, 0],
           [1, 0, 1, 1, 0, 0],
           [0, 1, 0, 1, 1, 0],
           [0, 0, 1, 0, 1, 1]])
    """
    n = check_int("n", n)
    stride = check_int("stride", stride, low=1)
    window = check_int("window", window)
    causal = check_flag("causal", causal)
    pieces = make_pieces(
        rows=(0, n),
        columns=(0, n),
        differences=([-window, -UNBOUNDED], 0 if causal else [window, UNBOUNDED]),
        step=np.array([1, stride]),
    )
    name = title(strided, n=n, stride=stride, window=window, causal=causal)
    return Pattern.from_pieces((n, n), pieces, name=name, orders=period_grid(n, stride, window))
