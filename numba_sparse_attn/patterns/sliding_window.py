"""Every query sees the keys around it."""

from __future__ import annotations

from ..formats.pieces import make_pieces
from ._arguments import check_flag, check_int, title
from .catalogue import entry
from .pattern import Pattern

__all__ = ["sliding_window"]


def _nnz(n: int, window: int, causal: bool = False) -> int:
    reach = min(window, max(n - 1, 0))
    one_side = n * reach - reach * (reach + 1) // 2
    return n + one_side * (1 if causal else 2)


@entry(
    examples=[
        {"n": 32, "window": 4},
        {"n": 32, "window": 4, "causal": True},
        {"n": 6, "window": 0},
        {"n": 6, "window": 100},
        {"n": 0, "window": 3},
    ],
    member=lambda i, j, n, window, causal=False: i - window <= j <= (i if causal else i + window),
    sample=lambda integers: {"n": integers(0, 20), "window": integers(0, 24), "causal": bool(integers(0, 1))},
    nnz=_nnz,
    scaled=lambda length: {"n": length, "window": 256},
)
def sliding_window(n: int, window: int, *, causal: bool = False) -> Pattern:
    """Every query sees the keys at most `window` positions away.

    ::

        {(i, j) : i - window <= j <= i + window}
        {(i, j) : i - window <= j <= i}             causal=True

    Parameters
    ----------
    n : int
        Number of tokens.
    window : int
        Positions seen on each side besides the query's own: ``2 * window + 1`` keys, ``window + 1``
        if causal. 0 is the diagonal.
    causal : bool
        Look back only.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``.

    Notes
    -----
    Pairs: exactly ``n * (2 * w + 1) - w * (w + 1)`` with ``w = min(window, n - 1)``;
    ``n * (w + 1) - w * (w + 1) / 2`` if causal.

    Cost: O(n * window * d) time; the pattern is one piece.

    Reach: `window` further on each side with every layer, so ``layers * window``.

    Use: as the local part of nearly every model of long sequences.

    Avoid: alone, where tokens further apart than ``layers * window`` depend on each other.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.sliding_window(4, 1).toarray().astype(int)
    array([[1, 1, 0, 0],
           [1, 1, 1, 0],
           [0, 1, 1, 1],
           [0, 0, 1, 1]])
    """
    n = check_int("n", n)
    window = check_int("window", window)
    causal = check_flag("causal", causal)
    pieces = make_pieces(rows=(0, n), columns=(0, n), differences=(-window, 0 if causal else window))
    return Pattern.from_pieces((n, n), pieces, name=title(sliding_window, n=n, window=window, causal=causal))
