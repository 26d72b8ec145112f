"""The two parts of the strided pattern, a head each."""

from __future__ import annotations

from ..formats.pieces import UNBOUNDED, make_pieces
from ._arguments import check_flag, check_int, title
from ._orders import periods
from .catalogue import entry
from .heads import HeadPatterns
from .pattern import Pattern
from .sliding_window import sliding_window
from .strided import sample_strided

__all__ = ["strided_heads"]


def _member(head: int, i: int, j: int, n: int, stride: int, window: int, causal: bool = False) -> bool:
    if causal and i < j:
        return False
    return (i - j) ** 2 <= window**2 if head == 0 else i % stride == j % stride


def _nnz(n: int, stride: int, window: int, causal: bool = False) -> int:
    sides = 1 if causal else 2
    local = n + sides * sum(n - distance for distance in range(1, min(window + 1, n)))
    return local + n + sides * sum(n - distance for distance in range(stride, n, stride))


@entry(
    examples=[
        {"n": 48, "stride": 8, "window": 4},
        {"n": 20, "stride": 4, "window": 4, "causal": True},
        {"n": 0, "stride": 2, "window": 1},
    ],
    member=_member,
    sample=sample_strided,
    nnz=_nnz,
    scaled=lambda length: {"n": length, "stride": 64, "window": 64},
    heads=2,
)
def strided_heads(n: int, stride: int, window: int, *, causal: bool = False) -> HeadPatterns:
    """The strided pattern split over two heads: one sees the window, one the strided keys.

    ::

        head 0: {(i, j) : i - window <= j <= i + window}
        head 1: {(i, j) : j - i = 0 (mod stride)}
        ... and j <= i                                       causal=True

    Parameters
    ----------
    n : int
        Number of tokens.
    stride : int
        Distance between the keys of head 1, at least 1.
    window : int
        Keys that head 0 sees on each side besides the query's own.
    causal : bool
        Look back only, in both heads.

    Returns
    -------
    HeadPatterns
        Two heads of shape ``(n, n)``. ``result + result`` makes four, and so on.

    Notes
    -----
    Pairs: exactly the sum of ``n - abs(o)`` over ``abs(o) <= window``, plus the same sum over the
    multiples o of `stride`.

    Cost: O(n * (window + n / stride) * d) time for both heads; one piece a head.

    Reach: as :func:`strided`, but the two kinds of step need two layers or a mix of the heads.

    Use: where every head should have a uniform job, as in the Sparse Transformer.

    Avoid: with a single head; use :func:`strided`.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> [head.nnz for head in patterns.strided_heads(64, 8, 8, causal=True)]
    [540, 288]
    """
    n = check_int("n", n)
    stride = check_int("stride", stride, low=1)
    causal = check_flag("causal", causal)
    local = sliding_window(n, window, causal=causal)
    ahead = 0 if causal else UNBOUNDED
    pieces = make_pieces(rows=(0, n), columns=(0, n), differences=(-UNBOUNDED, ahead), step=stride)
    name = f"{title(strided_heads, n=n, stride=stride, window=window, causal=causal)}[1]"
    steps = Pattern.from_pieces((n, n), pieces, name=name, orders=periods(n, [stride]))
    return local.heads(1) + steps.heads(1)
