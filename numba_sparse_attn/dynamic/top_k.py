"""The keys with the largest scores."""

from __future__ import annotations

from typing import Any

from ..formats.indices import from_indices
from ..formats.limits import NOTHING, limits_of
from ..patterns._arguments import title
from ..patterns.heads import HeadPatterns
from ..patterns.pattern import Pattern
from . import _dense
from ._call import Call
from .catalogue import Array, Case, Mask, by_head, entry

__all__ = ["top_k"]


def _definition(q: Array, k: Array, budget: int, causal: bool = False) -> Mask:
    return _dense.best(q @ k.T, _dense.seen(len(q), len(k), causal), budget)


@entry(
    examples=lambda: [
        Case(48, 48, {"budget": 6, "causal": True}),
        Case(33, 70, {"budget": [3, 0, 9, 80]}, heads=4, kv_heads=2),
        Case(40, 25, {"budget": 4, "causal": True}),
        Case(5, 0, {"budget": 2}),
    ],
    dense=by_head(_definition, "budget"),
    scaled=lambda length: Case(length, length, {"budget": 64, "causal": True}, head_dim=64),
)
def top_k(q: Any, k: Any, budget: Any, *, causal: bool = False) -> Pattern | HeadPatterns:
    """Every query sees the keys with the largest scores, exactly.

    ::

        {(i, j) : j among the first `budget` of the keys that i may see, by falling q_i . k_j, then by j}

    Parameters
    ----------
    q : array (..., heads, n_q, d) or (n_q, d)
    k : array (..., kv_heads, n_k, d) or (n_k, d)
        As :func:`numba_sparse_attn.sparse_attention` takes them, in host or GPU memory.
    budget : int or sequence of int
        Keys of every query; one number, or one for every query head.
    causal : bool
        Only keys ``j <= i + n_k - n_q`` may be seen.

    Returns
    -------
    Pattern or HeadPatterns
        A pattern for ``(n, d)`` arrays, else one for every head of every batch element.

    Notes
    -----
    Pairs: exactly ``min(budget, keys that i may see)`` in row i.

    Cost: O(n_q * n_k * d) time to select, in products of a panel of queries with all keys; O(n_q * budget)
    memory. A NaN score ranks last.

    Use: as the yardstick: no pattern with as many pairs keeps more attention weight.

    Avoid: for speed: selecting costs half of dense attention.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 2.0]])
    >>> nsa.dynamic.top_k(q, k, 2).toarray().astype(int)
    array([[1, 0, 1, 0],
           [0, 1, 0, 1],
           [1, 0, 1, 0],
           [0, 1, 0, 1]])
    """
    call = Call.of(q, k, causal, on_device=True)
    budgets = call.per_head("budget", budget)
    name = title(top_k, budget=budget, causal=causal)
    limits, tools = limits_of(call.n_q, call.n_k, causal=call.causal), call.tools
    tables = tools.best(tools.queries, tools.keys, limits, NOTHING, budgets)
    return call.stacked([Pattern.from_csr(from_indices(table, call.n_k), name=name) for table in tables])
