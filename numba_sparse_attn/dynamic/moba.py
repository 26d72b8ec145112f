"""Blocks of keys by their mean, for every query: MoBA's gate."""

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

__all__ = ["moba"]


def _definition(q: Array, k: Array, budget: int, block: int, causal: bool = False) -> Mask:
    means = [k[list(keys)].mean(axis=0) for keys in _dense.ranges(len(k), block)]
    scores = q @ np.array(means).reshape(-1, q.shape[1]).T
    return _dense.best_blocks(scores, (len(q), len(k)), block, 1, budget, causal)


@entry(
    examples=lambda: [
        Case(48, 48, {"budget": 3, "block": 6, "causal": True}),
        Case(33, 70, {"budget": [1, 2, 3, 40], "block": 8}, heads=4, kv_heads=2),
        Case(40, 25, {"budget": 2, "block": 4, "causal": True}),
        Case(5, 0, {"budget": 1, "block": 4}),
    ],
    dense=by_head(_definition, "budget"),
    scaled=lambda length: Case(length, length, {"budget": 4, "block": 64, "causal": True}, head_dim=64),
)
def moba(q: Any, k: Any, budget: Any, block: int, *, causal: bool = False) -> Pattern | HeadPatterns:
    """Every query sees the blocks of keys whose mean has the largest scores with it, and its own block.

    ::

        {(i, j) : block of j among the `budget` best for i},   score of i, b = q_i . mean(k over b)

    Where causal, the block in which the query itself stands is the first of the best, and blocks after it
    are out.

    Parameters
    ----------
    q : array (..., heads, n_q, d) or (n_q, d)
    k : array (..., kv_heads, n_k, d) or (n_k, d)
        As :func:`numba_sparse_attn.sparse_attention` takes them, in host or GPU memory.
    budget : int or sequence of int
        Blocks of every query, its own among them, at least 1; one number, or one for every query head.
    block : int
        Keys in a block, at least 1. The last block may be shorter.
    causal : bool
        Only keys ``j <= i + n_k - n_q`` may be seen.

    Returns
    -------
    Pattern or HeadPatterns
        A pattern for ``(n, d)`` arrays, else one for every head of every batch element. Held as a table of
        blocks; rows are made when they are needed.

    Notes
    -----
    Pairs: at most ``n_q * budget * block``.

    Cost: O(n_k * d + n_q * n_k * d / block) time to select; the pattern is `budget` numbers a query.

    Use: as in mixture of block attention (MoBA, 2025), which trains with it; the gate has no parameters.

    Avoid: with blocks much longer than what belongs together: the mean of everything is like nothing. For
    long sequences at the speed of whole tiles: there :func:`block_top_k` chooses by the mean of these scores
    over the queries of a block.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    >>> nsa.dynamic.moba(q, k, 2, 2, causal=True).toarray().astype(int)
    array([[1, 0, 0, 0, 0, 0],
           [1, 1, 0, 0, 0, 0],
           [1, 1, 1, 0, 0, 0],
           [1, 1, 1, 1, 0, 0],
           [1, 1, 0, 0, 1, 0],
           [0, 0, 1, 1, 1, 1]])
    """
    call = Call.of(q, k, causal, on_device=True)
    budgets = call.per_head("budget", budget, low=1)
    block = check_int("block", block, low=1)
    name = title(moba, budget=budget, block=block, causal=causal)
    choice = Blocks(call, block)
    tools = call.tools
    return choice.patterns(choice.best(tools.queries, tools.means(tools.keys, block), budgets), name)
