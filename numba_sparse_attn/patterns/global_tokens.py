"""Tokens that see all and are seen by all."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..formats.pieces import PieceArray, make_pieces
from ._arguments import check_int, check_ints, title
from ._spans import runs
from .catalogue import Integers, entry
from .pattern import Pattern

__all__ = ["global_pieces", "global_tokens"]


def _sample(integers: Integers) -> dict[str, object]:
    n = integers(1, 20)
    return {"n": n, "tokens": [integers(0, n - 1) for _ in range(integers(0, 5))]}


@entry(
    examples=[
        {"n": 40, "tokens": [0, 1, 20]},
        {"n": 6, "tokens": [5, 0, 5]},
        {"n": 6, "tokens": []},
        {"n": 0, "tokens": []},
    ],
    member=lambda i, j, n, tokens: i in tokens or j in tokens,
    sample=_sample,
    nnz=lambda n, tokens: n * n - (n - len(set(tokens))) ** 2,
    scaled=lambda length: {"n": length, "tokens": list(range(16))},
)
def global_tokens(n: int, tokens: npt.ArrayLike) -> Pattern:
    """Some tokens see everything and everything sees them.

    ::

        {(i, j) : i in tokens  or  j in tokens}

    Parameters
    ----------
    n : int
        Number of tokens.
    tokens : int array
        Positions from 0 to n - 1, in any order; duplicates mean the set.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``. All other queries see only `tokens`, so it is meant to be united with
        others: ``sliding_window(n, 64) | global_tokens(n, [0])``.

    Notes
    -----
    Pairs: exactly ``2 * g * n - g**2`` for g distinct tokens.

    Cost: O(n * g * d) time; the pattern is two pieces a run of neighboring tokens.

    Reach: everything after two layers, by way of a global token.

    Use: for classification tokens, separators, a question, or learned hubs.

    Avoid: scattering many of them: each alone makes a whole row and column of tiles partial.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.global_tokens(4, [1]).toarray().astype(int)
    array([[0, 1, 0, 0],
           [1, 1, 1, 1],
           [0, 1, 0, 0],
           [0, 1, 0, 0]])
    """
    n = check_int("n", n)
    positions = check_ints("tokens", tokens, high=n - 1)
    name = title(global_tokens, n=n, tokens=positions)
    return Pattern.from_pieces((n, n), global_pieces(n, positions), name=name)


def global_pieces(n: int, positions: npt.NDArray[np.int64]) -> PieceArray:
    """Rows and columns of `positions`."""
    spans = runs(positions)
    everything = (0, n)
    return np.concatenate(
        [make_pieces(rows=spans, columns=everything), make_pieces(rows=everything, columns=spans)]
    )
