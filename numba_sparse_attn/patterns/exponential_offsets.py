"""Offsets that double."""

from __future__ import annotations

import numpy as np

from ..formats.pieces import make_pieces
from ._arguments import check_int, title
from .catalogue import entry
from .pattern import Pattern

__all__ = ["exponential_offsets"]


def _member(i: int, j: int, n: int, base: int) -> bool:
    quotient, remainder = divmod(abs(i - j), base)
    return i == j or (remainder == 0 and quotient.bit_count() == 1)


def _nnz(n: int, base: int) -> int:
    offsets = [base << k for k in range(n.bit_length() + 1) if base << k < n]
    return n + 2 * sum(n - offset for offset in offsets)


@entry(
    examples=[{"n": 48, "base": 1}, {"n": 40, "base": 3}, {"n": 5, "base": 9}, {"n": 0, "base": 1}],
    member=_member,
    sample=lambda integers: {"n": integers(0, 40), "base": integers(1, 6)},
    nnz=_nnz,
    scaled=lambda length: {"n": length, "base": 1},
)
def exponential_offsets(n: int, base: int) -> Pattern:
    """Every query sees itself and the keys at distances that double.

    ::

        {(i, j) : j = i  or  abs(i - j) = base * 2**k for some k >= 0}

    Parameters
    ----------
    n : int
        Number of tokens.
    base : int
        The shortest distance, at least 1.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``.

    Notes
    -----
    Pairs: exactly ``n + 2 * sum(n - base * 2**k)`` over the k with ``base * 2**k < n``; at most
    ``n * (1 + 2 * (1 + log2(n / base)))``.

    Cost: O(n * log(n / base) * d) time; the pattern is two pieces a distance.

    Reach: with base 1, everything after ``log2(n)`` layers, as every distance is a sum of powers of two.

    Use: for the fewest pairs that still connect everything in few layers. Its ``.causal()`` is known
    as log-sparse attention.

    Avoid: without a window beside it where neighbors matter: the keys nearby are thin.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.exponential_offsets(16, 1).rows().indices[:5].tolist()
    [0, 1, 2, 4, 8]
    """
    n = check_int("n", n)
    base = check_int("base", base, low=1)
    doublings = max(0, (max(n - 1, 0) // base).bit_length())
    distances = base * 2 ** np.arange(doublings, dtype=np.int64)
    offsets = np.concatenate([-distances[::-1], np.zeros(1, np.int64), distances])
    pieces = make_pieces(rows=(0, n), columns=(0, n), differences=(offsets, offsets))
    return Pattern.from_pieces((n, n), pieces, name=title(exponential_offsets, n=n, base=base))
