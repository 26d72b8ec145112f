"""How much attention every block of queries gives to every block of keys: what a predictor learns from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays import check_scale
from ..patterns._arguments import check_int
from ..patterns._spans import blocks
from ._call import Call, Floats
from ._panels import for_each_rows, scores_of, softmax_rows

__all__ = ["block_masses", "sums_by_block"]


def block_masses(
    q: Any,
    k: Any,
    block: int,
    *,
    query_block: int | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Floats:
    """Share of its attention that a block of queries gives to every block of keys: exactly, at dense cost.

    The mean over the queries i of a block of the sum over the keys j of a block of softmax(scale * q k^T)_ij.
    Scores exist for a panel of queries at a time.

    Parameters
    ----------
    q : array (..., heads, n_q, d) or (n_q, d)
    k : array (..., kv_heads, n_k, d) or (n_k, d)
        As :func:`numba_sparse_attn.sparse_attention` takes them, in host memory.
    block : int
        Keys in a block, at least 1. The last block may be shorter.
    query_block : int, optional
        Queries in a block; as many as keys if not given.
    causal : bool
        Only keys ``j <= i + n_k - n_q`` are seen.
    scale : float, optional
        Factor on q k^T; ``1 / sqrt(d)`` if not given.

    Returns
    -------
    array (..., heads, blocks of queries, blocks of keys)
        float32, float64 for float64. A row sums to 1, or to the share of its queries that see any key.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.zeros((4, 8))
    >>> nsa.dynamic.block_masses(q, k, 2, causal=True)
    array([[1.        , 0.        ],
           [0.58333333, 0.41666667]])
    """
    call = Call.of(q, k, causal)
    block = check_int("block", block, low=1)
    rows = block if query_block is None else check_int("query_block", query_block, low=1)
    factor = check_scale(scale, int(call.q.shape[-1]))
    begins, ends = blocks(call.n_q, rows)
    counts = (ends - begins)[:, None].astype(call.q.dtype)

    def masses(batch: int, head: int) -> Floats:
        queries, keys = call.queries(batch, head), call.keys(batch, head)

        def weights(panel: slice) -> Floats:
            limits = call.visible[panel]
            return softmax_rows(factor * scores_of(queries[panel], keys, limits), limits)

        return sums_by_block(call, block, rows, weights) / counts

    return by_head(call, (len(begins), -(-call.n_k // block)), masses)


def sums_by_block(call: Call, block: int, query_block: int, values: Callable[[slice], Floats]) -> Floats:
    """Sums of a number a pair over all pairs of two blocks, ``[query blocks, blocks of keys]``.

    ``values(rows)`` gives them for some queries and the first keys, ``[rows, keys]``; what is left is 0.
    """
    begins, ends = blocks(call.n_q, query_block)
    columns = blocks(call.n_k, block)[0]
    sums = np.zeros((len(begins), len(columns)), call.q.dtype)

    def work(some: slice) -> None:
        found = values(slice(begins[some.start], ends[some.stop - 1]))
        starts = columns[columns < found.shape[1]]
        if len(starts):
            by_key = np.add.reduceat(found, starts, axis=1)
            sums[some, : len(starts)] = np.add.reduceat(by_key, begins[some] - begins[some.start], axis=0)

    if len(columns):
        for_each_rows(len(begins), call.n_k * query_block, work)
    return sums


def by_head(call: Call, shape: tuple[int, int], make: Callable[[int, int], Floats]) -> Floats:
    """What `make` gives for every batch element and head, with the axes of the call's arrays."""
    made = [make(batch, head) for batch in range(len(call.q)) for head in range(call.heads)]
    lead = () if call.sizes.flat else (*call.sizes.lead, call.heads)
    return np.asarray(made, call.q.dtype).reshape(*lead, *shape)
