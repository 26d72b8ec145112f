"""Whether what a GPU selected is right, where its sums are rounded in another order than the host's.

Two scores that are closer than rounding may change places, and nothing else may: with scores in float64 and a
bound on the rounding of each, everything chosen has to be as good as the last one that exact scores choose,
and everything left out no better, up to these bounds.
"""

from __future__ import annotations

import numpy as np

from numba_sparse_attn.arrays import check_arrays
from numba_sparse_attn.dynamic._tools import HostTools
from numba_sparse_attn.formats.limits import NOTHING, always_of, limits_of

#: Rows of queries and of keys whose products are the scores, for every selection that takes the largest.
ROWS = {
    "block_top_k": lambda tools, case: (
        tools.means(tools.queries, case["query_block"]),
        tools.means(tools.keys, case["block"]),
    ),
    "moba": lambda tools, case: (tools.queries, tools.means(tools.keys, case["block"])),
    "quest": lambda tools, case: (
        tools.sides(tools.queries, case["query_block"]),
        tools.extremes(tools.keys, case["block"]),
    ),
    "top_k": lambda tools, case: (tools.queries, tools.keys),
}


def assert_chosen(name, q, k, made, *, budget, causal, block=1, query_block=1):
    """`made` are the patterns of all heads, for q and k that the host has in the same element type."""
    q, k = (np.asarray(array, np.float64) for array in (q, k))
    sizes = check_arrays(q, k, k)
    queries, keys = ROWS[name](HostTools(sizes, q, k), {"block": block, "query_block": query_block})
    limits = limits_of(sizes.n_q, sizes.n_k, causal=causal, per_row=query_block, block=block)
    always = NOTHING if name == "top_k" else always_of(block, causal=causal)
    reach, forced = limits.values(), always.mask(limits, slice(None), limits.most)
    for number, pattern in enumerate(made):
        batch, head = divmod(number, sizes.heads)
        left, right = queries(batch, head), keys(batch, head)
        scores = left @ right.T
        # Sums of so many float32: each term is rounded once a sum that it is in, and once as a product.
        roundings = left.shape[1] + block + query_block + 2
        errors = roundings * 2.0**-24 * (np.abs(left) @ np.abs(right).T)
        mask = pattern.toarray()
        first = np.arange(0, sizes.n_q, query_block)
        chosen = np.logical_or.reduceat(np.logical_or.reduceat(mask, first, axis=0), _edges(sizes, block), 1)
        _assert_whole_blocks(mask, chosen, sizes, causal, block, query_block)
        for row, limit in enumerate(reach):
            mine, free = chosen[row, :limit], ~forced[row, :limit]
            assert not chosen[row, limit:].any() and mine[~free].all()
            wanted = min(limit, max(budget, (~free).sum())) - (~free).sum()
            assert (mine & free).sum() == wanted
            if 0 < wanted < free.sum():
                last = np.sort(scores[row, :limit][free])[-wanted]
                least = np.sort((scores + errors)[row, :limit][free])[-wanted]
                most = np.sort((scores - errors)[row, :limit][free])[-wanted]
                assert (scores + errors)[row, :limit][mine & free].min() >= most
                assert (scores - errors)[row, :limit][~mine & free].max() <= least
                assert most <= last <= least


def _edges(sizes, block):
    return np.arange(0, sizes.n_k, block)


def _assert_whole_blocks(mask, chosen, sizes, causal, block, query_block):
    """Every pair of a chosen block that may be seen, and no other."""
    whole = np.repeat(np.repeat(chosen, query_block, axis=0), block, axis=1)[: sizes.n_q, : sizes.n_k]
    if causal:
        whole = whole & np.tri(sizes.n_q, sizes.n_k, sizes.n_k - sizes.n_q, dtype=bool)
    np.testing.assert_array_equal(mask, whole)
