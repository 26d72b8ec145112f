"""Blocks of keys by their means."""

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

__all__ = ["block_top_k"]


def _definition(
    q: Array, k: Array, budget: int, block: int, query_block: int | None = None, causal: bool = False
) -> Mask:
    query_block = block if query_block is None else query_block
    means = [
        np.array([array[list(tokens)].mean(axis=0) for tokens in _dense.ranges(len(array), size)])
        for array, size in ((q, query_block), (k, block))
    ]
    scores = means[0] @ means[1].T if len(q) and len(k) else np.zeros((len(means[0]), 0))
    return _dense.best_blocks(scores, (len(q), len(k)), block, query_block, budget, causal)


@entry(
    examples=lambda: [
        Case(48, 48, {"budget": 2, "block": 6, "causal": True}),
        Case(33, 70, {"budget": [1, 2, 3, 40], "block": 8}, heads=4, kv_heads=2),
        Case(40, 25, {"budget": 2, "block": 4, "query_block": 7, "causal": True}),
        Case(27, 45, {"budget": 3, "block": 5, "query_block": 1, "causal": True}),
        Case(5, 0, {"budget": 1, "block": 4}),
    ],
    dense=by_head(_definition, "budget"),
    scaled=lambda length: Case(length, length, {"budget": 8, "block": 64, "causal": True}, head_dim=64),
)
def block_top_k(
    q: Any, k: Any, budget: Any, block: int, *, query_block: int | None = None, causal: bool = False
) -> Pattern | HeadPatterns:
    """Every block of queries sees the blocks of keys whose mean is most like its own.

    ::

        {(i, j) : block of j among the `budget` best for the block of i}
        score of blocks a, b = mean(q over a) . mean(k over b)

    Where causal, the blocks in which the queries themselves stand come before all others, and the rest of
    the budget goes to blocks before them.

    Parameters
    ----------
    q : array (..., heads, n_q, d) or (n_q, d)
    k : array (..., kv_heads, n_k, d) or (n_k, d)
        As :func:`numba_sparse_attn.sparse_attention` takes them, in host or GPU memory.
    budget : int or sequence of int
        Blocks of keys for every block of queries, at least 1; one number, or one for every query head.
    block : int
        Keys in a block, at least 1. The last block may be shorter.
    query_block : int, optional
        Queries in a block; as many as keys if not given. With 1, every query chooses for itself.
    causal : bool
        Only keys ``j <= i + n_k - n_q`` may be seen.

    Returns
    -------
    Pattern or HeadPatterns
        A pattern for ``(n, d)`` arrays, else one for every head of every batch element: pieces where blocks
        of queries choose, a table of blocks where queries do.

    Notes
    -----
    Pairs: at most ``n_q * budget * block``; more where the queries of a block stand in more blocks of keys
    than that.

    Cost: O((n_q + n_k) * d + n_q * n_k * d / (query_block * block)) time to select.

    Use: as the selection that is cheapest to make and to compute with: multiples of 128 give full tiles.

    Avoid: where one key of a block matters and the rest of it does not: a mean hides it. :func:`quest` does
    not overlook it.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    >>> nsa.dynamic.block_top_k(q, k, 2, 2, causal=True).toarray().astype(int)
    array([[1, 0, 0, 0, 0, 0],
           [1, 1, 0, 0, 0, 0],
           [1, 1, 1, 0, 0, 0],
           [1, 1, 1, 1, 0, 0],
           [1, 1, 0, 0, 1, 0],
           [1, 1, 0, 0, 1, 1]])
    """
    call = Call.of(q, k, causal, on_device=True)
    budgets = call.per_head("budget", budget, low=1)
    block = check_int("block", block, low=1)
    rows = block if query_block is None else check_int("query_block", query_block, low=1)
    name = title(block_top_k, budget=budget, block=block, query_block=query_block, causal=causal)
    choice = Blocks(call, block, query_block=rows)
    tools = call.tools
    queries, keys = tools.means(tools.queries, rows), tools.means(tools.keys, block)
    return choice.patterns(choice.best(queries, keys, budgets), name)
