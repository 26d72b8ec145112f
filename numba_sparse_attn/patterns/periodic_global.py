"""Every stride-th token sees all and is seen by all."""

from __future__ import annotations

from ..formats.pieces import Axis, make_pieces
from ._arguments import check_int, title
from .catalogue import entry
from .pattern import Pattern

__all__ = ["periodic_global"]


@entry(
    examples=[{"n": 40, "stride": 8}, {"n": 5, "stride": 1}, {"n": 5, "stride": 9}, {"n": 0, "stride": 3}],
    member=lambda i, j, n, stride: 0 in (i % stride, j % stride),
    sample=lambda integers: {"n": integers(0, 20), "stride": integers(1, 8)},
    nnz=lambda n, stride: n * n - (n - -(-n // stride)) ** 2,
    scaled=lambda length: {"n": length, "stride": 256},
)
def periodic_global(n: int, stride: int) -> Pattern:
    """Every `stride`-th token sees everything and everything sees it.

    ::

        {(i, j) : i = 0 (mod stride)  or  j = 0 (mod stride)}

    Parameters
    ----------
    n : int
        Number of tokens.
    stride : int
        Distance between the global tokens, at least 1; the first is token 0.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``. All other queries see only the global tokens, so it is meant to be united
        with others.

    Notes
    -----
    Pairs: exactly ``2 * g * n - g**2`` with ``g = ceil(n / stride)``.

    Cost: O(n**2 / stride * d) time; the pattern is two pieces, but its tiles are as many as those of
    dense attention while `stride` is at most 128.

    Reach: everything after two layers, by way of any global token.

    Use: where hubs are needed everywhere and nothing tells which tokens they should be.

    Avoid: for very long sequences with a fixed stride, as the cost grows with n**2.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.periodic_global(4, 3).toarray().astype(int)
    array([[1, 1, 1, 1],
           [1, 0, 0, 1],
           [1, 0, 0, 1],
           [1, 1, 1, 1]])
    """
    n = check_int("n", n)
    stride = check_int("stride", stride, low=1)
    pieces = make_pieces(rows=(0, n), columns=(0, n), axis=[Axis.ROW, Axis.COLUMN], step=stride)
    return Pattern.from_pieces((n, n), pieces, name=title(periodic_global, n=n, stride=stride))
