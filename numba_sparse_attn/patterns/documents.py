"""Packed documents that do not see one another."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from ..formats.pieces import UNBOUNDED, make_pieces
from ._arguments import check_flag, check_ints, title
from .catalogue import entry
from .pattern import Pattern

__all__ = ["documents"]


def _member(i: int, j: int, lengths: Sequence[int], causal: bool = False) -> bool:
    ends = list(accumulate(lengths))
    return bisect_right(ends, i) == bisect_right(ends, j) and (j <= i or not causal)


@entry(
    examples=[
        {"lengths": [10, 4, 18, 7]},
        {"lengths": [10, 4, 18, 7], "causal": True},
        {"lengths": [3, 0, 0, 2]},
        {"lengths": [0]},
        {"lengths": []},
    ],
    member=_member,
    sample=lambda integers: {
        "lengths": [integers(0, 6) for _ in range(integers(0, 5))],
        "causal": bool(integers(0, 1)),
    },
    nnz=lambda lengths, causal=False: sum(m * (m + 1) // 2 if causal else m * m for m in lengths),
    scaled=lambda length: {"lengths": [length // 8] * 6 + [length - length // 8 * 6], "causal": True},
)
def documents(lengths: npt.ArrayLike, *, causal: bool = False) -> Pattern:
    """Several documents in one sequence; every query sees its own document.

    ::

        {(i, j) : document(i) = document(j)}
        {(i, j) : document(i) = document(j), j <= i}     causal=True

    Parameters
    ----------
    lengths : int array (documents,)
        Tokens of every document, in order; a document may be empty. Their sum is n.
    causal : bool
        See only what came before.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``.

    Notes
    -----
    Pairs: exactly the sum of ``m**2`` over the lengths m; of ``m * (m + 1) / 2`` if causal.

    Cost: O(sum of m**2 * d) time; the pattern is one piece a document.

    Reach: the whole document after one layer, nothing outside ever.

    Use: to train on packed sequences without padding and without leaks from one to the next.

    Avoid: for equal lengths, where a batch axis does the same.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.documents([2, 3], causal=True).toarray().astype(int)
    array([[1, 0, 0, 0, 0],
           [1, 1, 0, 0, 0],
           [0, 0, 1, 0, 0],
           [0, 0, 1, 1, 0],
           [0, 0, 1, 1, 1]])
    """
    sizes = check_ints("lengths", lengths)
    causal = check_flag("causal", causal)
    ends = np.cumsum(sizes)
    spans = (ends - sizes, ends)
    n = int(sizes.sum())
    pieces = make_pieces(rows=spans, columns=spans, differences=(-UNBOUNDED, 0 if causal else UNBOUNDED))
    return Pattern.from_pieces((n, n), pieces, name=title(documents, lengths=sizes, causal=causal))
