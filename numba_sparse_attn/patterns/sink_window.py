"""The first tokens and a causal window."""

from __future__ import annotations

from ..formats.pieces import UNBOUNDED, make_pieces
from ._arguments import check_int, title
from .catalogue import entry
from .pattern import Pattern

__all__ = ["sink_window"]


def _nnz(n: int, sinks: int, window: int) -> int:
    hidden = max(0, n - 1 - window - sinks)  # keys between the sinks and the last query's window
    return (n * (n + 1) - hidden * (hidden + 1)) // 2


@entry(
    examples=[
        {"n": 40, "sinks": 3, "window": 7},
        {"n": 8, "sinks": 0, "window": 2},
        {"n": 8, "sinks": 20, "window": 0},
        {"n": 0, "sinks": 4, "window": 4},
    ],
    member=lambda i, j, n, sinks, window: 0 <= i - j and (i - j <= window or j < sinks),
    sample=lambda integers: {"n": integers(0, 20), "sinks": integers(0, 6), "window": integers(0, 12)},
    nnz=_nnz,
    scaled=lambda length: {"n": length, "sinks": 4, "window": 1024},
)
def sink_window(n: int, sinks: int, window: int) -> Pattern:
    """Every query sees the first `sinks` tokens and a causal window.

    ::

        {(i, j) : j <= i  and  (j < sinks  or  i - window <= j)}

    Parameters
    ----------
    n : int
        Number of tokens.
    sinks : int
        Tokens at the beginning that stay visible; they may be more than n.
    window : int
        Positions seen before the query's own.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``.

    Notes
    -----
    Pairs: exactly ``n * (n + 1) / 2 - h * (h + 1) / 2`` with ``h = max(0, n - 1 - window - sinks)``;
    at most ``n * (window + 1 + sinks)``.

    Cost: O(n * (window + sinks) * d) time; the pattern is two pieces.

    Reach: `window` further back with every layer, and the first tokens always.

    Use: to run a trained decoder over endless input (StreamingLLM); as the A-shape of sparse prefill.

    Avoid: where the middle of a long text is asked for: nothing there is visible from afar.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.sink_window(5, 1, 1).toarray().astype(int)
    array([[1, 0, 0, 0, 0],
           [1, 1, 0, 0, 0],
           [1, 1, 1, 0, 0],
           [1, 0, 1, 1, 0],
           [1, 0, 0, 1, 1]])
    """
    n = check_int("n", n)
    sinks = check_int("sinks", sinks)
    window = check_int("window", window)
    pieces = make_pieces(rows=(0, n), columns=(0, [min(sinks, n), n]), differences=([-UNBOUNDED, -window], 0))
    return Pattern.from_pieces((n, n), pieces, name=title(sink_window, n=n, sinks=sinks, window=window))
