"""A prefix in full, the rest causal."""

from __future__ import annotations

import numpy as np

from ..formats.pieces import UNBOUNDED, make_pieces
from ._arguments import check_int, title
from .catalogue import Integers, entry
from .pattern import Pattern

__all__ = ["prefix"]


def _sample(integers: Integers) -> dict[str, int]:
    n = integers(0, 20)
    return {"n": n, "length": integers(0, n)}


@entry(
    examples=[{"n": 32, "length": 10}, {"n": 6, "length": 0}, {"n": 6, "length": 6}, {"n": 0, "length": 0}],
    member=lambda i, j, n, length: j <= i or j < length,
    sample=_sample,
    nnz=lambda n, length: (n * (n + 1) + length * (length - 1)) // 2,
    scaled=lambda length: {"n": length, "length": length // 4},
)
def prefix(n: int, length: int) -> Pattern:
    """Every query sees the whole prefix; otherwise it looks back only.

    ::

        {(i, j) : j <= i  or  j < length}

    Parameters
    ----------
    n : int
        Number of tokens.
    length : int
        Tokens of the prefix, from 0 to n.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``.

    Notes
    -----
    Pairs: exactly ``n * (n + 1) / 2 + length * (length - 1) / 2``.

    Cost: O(n**2 * d) time, about half of dense; the pattern is two pieces.

    Reach: the prefix and the whole past after one layer.

    Use: in prefix language models, where a prompt is encoded in both directions.

    Avoid: for prompts that are to be extended later: their tokens would see the extension.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.prefix(4, 2).toarray().astype(int)
    array([[1, 1, 0, 0],
           [1, 1, 0, 0],
           [1, 1, 1, 0],
           [1, 1, 1, 1]])
    """
    n = check_int("n", n)
    length = check_int("length", length, high=n)
    past = make_pieces(rows=(0, n), columns=(0, n), differences=(-UNBOUNDED, 0))
    seen_by_all = make_pieces(rows=(0, n), columns=(0, length))
    name = title(prefix, n=n, length=length)
    return Pattern.from_pieces((n, n), np.concatenate([past, seen_by_all]), name=name)
