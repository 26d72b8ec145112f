"""Pages of keys by the largest score that a key in them could have."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..patterns._arguments import check_int, title
from ..patterns.heads import HeadPatterns
from ..patterns.pattern import Pattern
from . import _dense
from ._blocks import Blocks
from ._call import Call
from .catalogue import Array, Case, Mask, by_head, entry

__all__ = ["quest"]


def _definition(
    q: Array, k: Array, budget: int, page: int, query_block: int = 1, causal: bool = False
) -> Mask:
    pages = [k[list(keys)] for keys in _dense.ranges(len(k), page)]
    scores = np.zeros((len(q), len(pages)))
    for number, keys in enumerate(pages):
        bounds = np.maximum(q * keys.min(axis=0), q * keys.max(axis=0))
        scores[:, number] = bounds.sum(axis=1)
    shared = [scores[list(queries)].mean(axis=0) for queries in _dense.ranges(len(q), query_block)]
    scores = np.array(shared).reshape(len(shared), len(pages))
    return _dense.best_blocks(scores, (len(q), len(k)), page, query_block, budget, causal)


@entry(
    examples=lambda: [
        Case(48, 48, {"budget": 3, "page": 6, "causal": True}),
        Case(33, 70, {"budget": [1, 2, 3, 40], "page": 8}, heads=4, kv_heads=2),
        Case(1, 61, {"budget": 4, "page": 4, "causal": True}),
        Case(40, 25, {"budget": 2, "page": 4, "causal": True}),
        Case(40, 25, {"budget": 2, "page": 4, "query_block": 6, "causal": True}),
        Case(5, 0, {"budget": 1, "page": 4}),
    ],
    dense=by_head(_definition, "budget"),
    scaled=lambda length: Case(length, length, {"budget": 16, "page": 16, "causal": True}, head_dim=64),
)
def quest(
    q: Any, k: Any, budget: Any, page: int, *, query_block: int = 1, causal: bool = False
) -> Pattern | HeadPatterns:
    """Every query sees the pages of keys that could hold the largest scores, judged by their extremes.

    ::

        {(i, j) : page of j among the `budget` best for i}
        score of i, p = sum over channels c of max(q_ic * min(k_c over p), q_ic * max(k_c over p))

    No key of a page has a larger score than the page. With `query_block`, that many queries in a row share
    their pages: those with the largest mean of their scores. Where causal, the page in which a query itself
    stands is the first of the best, and pages after it are out.

    Parameters
    ----------
    q : array (..., heads, n_q, d) or (n_q, d)
    k : array (..., kv_heads, n_k, d) or (n_k, d)
        As :func:`numba_sparse_attn.sparse_attention` takes them, in host or GPU memory.
    budget : int or sequence of int
        Pages of every query, its own among them, at least 1; one number, or one for every query head.
    page : int
        Keys in a page, at least 1. The last page may be shorter.
    query_block : int
        Queries that share a choice. Where this and `page` are multiples of 128, pages are full tiles.
    causal : bool
        Only keys ``j <= i + n_k - n_q`` may be seen.

    Returns
    -------
    Pattern or HeadPatterns
        A pattern for ``(n, d)`` arrays, else one for every head of every batch element. Held as a table of
        pages; rows, or pieces where queries share a choice, are made when they are needed.

    Notes
    -----
    Pairs: at most ``n_q * budget * page``; more where the queries of a block stand in more pages than that.

    Cost: O((n_q + n_k) * d + 2 * n_q * n_k * d / (query_block * page)) time to select; the pattern is
    `budget` numbers a block of queries.

    Use: while decoding, one query at a time over a cache in pages, as in Quest (2024).

    Avoid: with long pages: their extremes soon promise everything.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q, k = np.array([[1.0, -1.0]]), np.array([[0.0, 0.0], [3.0, 3.0], [2.0, 0.0], [0.0, 0.0]])
    >>> nsa.dynamic.quest(q, k, 1, 2).toarray().astype(int)  # pages that promise 3 and 2
    array([[1, 1, 0, 0]])
    """
    call = Call.of(q, k, causal, on_device=True)
    budgets = call.per_head("budget", budget, low=1)
    page = check_int("page", page, low=1)
    rows = check_int("query_block", query_block, low=1)
    name = title(quest, budget=budget, page=page, query_block=query_block, causal=causal)
    choice = Blocks(call, page, query_block=rows)
    tools = call.tools
    # What is above 0 meets the maximum of its channel, what is below the minimum.
    queries, keys = tools.sides(tools.queries, rows), tools.extremes(tools.keys, page)
    return choice.patterns(choice.best(queries, keys, budgets), name)
