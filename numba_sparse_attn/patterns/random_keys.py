"""A few random keys for every query."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from ..formats.pieces import make_pieces
from ._arguments import check_int, title
from ._random import chosen, distinct_choices
from .catalogue import entry
from .pattern import Pattern

__all__ = ["MAXIMAL_SEED", "random_keys"]

#: Seeds are 64-bit words.
MAXIMAL_SEED = 2**64 - 1


@entry(
    examples=[
        {"n": 40, "per_query": 4, "seed": 0},
        {"n": 9, "per_query": 8, "seed": 2**64 - 1},
        {"n": 5, "per_query": 7, "seed": 1},
        {"n": 5, "per_query": 0, "seed": 1},
        {"n": 0, "per_query": 2, "seed": 1},
    ],
    member=lambda i, j, n, per_query, seed: j in chosen(seed, i, per_query, n),
    sample=lambda integers: {
        "n": integers(0, 16),
        "per_query": integers(0, 18),
        "seed": integers(0, 2**64 - 1),
    },
    nnz=lambda n, per_query, seed: n * min(per_query, n),
    scaled=lambda length: {"n": length, "per_query": 64, "seed": 0},
)
def random_keys(n: int, per_query: int, seed: int) -> Pattern:
    """Every query sees a few keys chosen at random, each set of keys being equally likely.

    ::

        {(i, j) : j in R(i)}

    with R(i) the first `per_query` distinct values of a random stream of query i, modulo n. The stream
    is splitmix64 started at word number i of splitmix64 started at `seed`, so the choice is the same
    on every machine and with every version of NumPy and Python.

    Parameters
    ----------
    n : int
        Number of tokens.
    per_query : int
        Keys of every query; all of them where that is n or more.
    seed : int
        From 0 to 2**64 - 1.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``. Rows are made when they are needed.

    Notes
    -----
    Pairs: exactly ``n * min(per_query, n)``.

    Cost: O(n * per_query * d) time; the pattern is a few numbers, its rows 4 bytes a pair.

    Reach: everything after about ``log(n) / log(per_query)`` layers, as in any random graph.

    Use: beside a window, to shorten the paths between far tokens.

    Avoid: for speed: it touches nearly every tile for a few pairs; :func:`random_blocks` does not.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.random_keys(8, 2, 0).toindices().tolist()
    [[6, 7], [0, 6], [2, 4], [0, 1], [1, 4], [4, 5], [3, 5], [2, 4]]
    """
    n = check_int("n", n)
    per_query = check_int("per_query", per_query)
    seed = check_int("seed", seed, high=MAXIMAL_SEED)
    name = title(random_keys, n=n, per_query=per_query, seed=seed)
    if per_query >= n:
        return Pattern.from_pieces((n, n), make_pieces(rows=(0, n), columns=(0, n)), name=name)
    return Pattern.from_rows((n, n), partial(_rows, n, per_query, seed), name=name)


def _rows(
    n: int, per_query: int, seed: int, begin: int, end: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    rows = np.arange(begin, end, dtype=np.int64)
    return distinct_choices(seed, rows, np.full(len(rows), per_query), np.full(len(rows), n))
