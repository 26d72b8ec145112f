"""Whether what a GPU selected is right, where its sums are rounded in another order than the host's.

Two scores that are closer than rounding may change places, and nothing else may: with scores in float64 and a
bound on the rounding of each, everything chosen has to be as good as the last one that exact scores choose,
and everything left out no better, up to these bounds.
"""

from __future__ import annotations

import numpy as np

from numba_sparse_attn.arrays import check_arrays
from numba_sparse_attn.dynamic._panels import softmax_rows
from numba_sparse_attn.dynamic._tools import HostTools, _shares
from numba_sparse_attn.formats.limits import NOTHING, Stretches, always_of, limits_of

#: Of float32, in which sums are taken unless all is float64.
_ROUNDING = 2.0**-24

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
    tools, sizes = _tools_of(q, k)
    queries, keys = ROWS[name](tools, {"block": block, "query_block": query_block})
    always = NOTHING if name == "top_k" else always_of(block, causal=causal)
    for number, pattern in enumerate(made):
        batch, head = divmod(number, sizes.heads)
        left, right = queries(batch, head), keys(batch, head)
        # Sums of so many float32: each term is rounded once a sum that it is in, and once as a product.
        roundings = left.shape[1] + block + query_block + 2
        errors = roundings * _ROUNDING * (np.abs(left) @ np.abs(right).T)
        _assert_best(pattern, left @ right.T, errors, sizes, always, budget, causal, query_block)


def assert_attended(q, k, made, *, budget, causal, block, query_block, length, stride):
    """The same for nsa_blocks with its other arguments as they are if not given; `made` are of all heads."""
    tools, sizes = _tools_of(q, k)
    stretches = Stretches(length, stride)
    tokens, seen = (
        tools.compressed(tools.keys, stretches),
        stretches.seen(sizes.n_q, sizes.n_k, causal=causal),
    )
    group, visible = sizes.heads // sizes.kv_heads, seen.values()
    shares = _shares(stretches, seen.most, block, -(-sizes.n_k // block))
    factor = sizes.head_dim**-0.5
    for number, pattern in enumerate(made):
        batch, head = divmod(number, sizes.heads)
        keys, masses = tokens(batch, head), 0.0
        largest = 0.0
        for member in range(head - head % group, head - head % group + group):
            rows = tools.queries(batch, member)
            masses = masses + softmax_rows(factor * rows @ keys.T, visible) @ shares.T
            largest = max(largest, float((np.abs(rows) @ np.abs(keys).T).max(initial=0.0)))
        masses = np.add.reduceat(masses, np.arange(0, sizes.n_q, query_block), axis=0)
        # A score that is off by e changes a weight by a factor of exp(e), and their sum by as much.
        off = 2.0 * factor * (sizes.head_dim + length + 2) * _ROUNDING * largest
        errors = masses * (np.expm1(off) + (3 * seen.most + group * query_block + 8) * _ROUNDING)
        always = always_of(block, causal=causal, first=1, local=2)
        _assert_best(pattern, masses, errors, sizes, always, budget, causal, query_block)


def _tools_of(q, k):
    q, k = (np.asarray(array, np.float64) for array in (q, k))
    sizes = check_arrays(q, k, k)
    return HostTools(sizes, q, k), sizes


def _assert_best(pattern, scores, errors, sizes, always, budget, causal, query_block):
    """The pattern is one of whole blocks, the best of every row up to the errors of their scores."""
    block = always.block
    limits = limits_of(sizes.n_q, sizes.n_k, causal=causal, per_row=query_block, block=block)
    forced = always.mask(limits, slice(None), limits.most)
    mask = pattern.toarray()
    by_row = np.logical_or.reduceat(mask, np.arange(0, sizes.n_q, query_block), axis=0)
    chosen = np.logical_or.reduceat(by_row, np.arange(0, sizes.n_k, block), axis=1)
    whole = np.repeat(np.repeat(chosen, query_block, axis=0), block, axis=1)[: sizes.n_q, : sizes.n_k]
    if causal:
        whole = whole & np.tri(sizes.n_q, sizes.n_k, sizes.n_k - sizes.n_q, dtype=bool)
    np.testing.assert_array_equal(mask, whole)
    low, high = scores - errors, scores + errors
    for row, limit in enumerate(limits.values()):
        mine, free = chosen[row, :limit], ~forced[row, :limit]
        assert not chosen[row, limit:].any() and mine[~free].all()
        wanted = min(limit, max(budget, (~free).sum())) - (~free).sum()
        assert (mine & free).sum() == wanted
        if 0 < wanted < free.sum():
            assert high[row, :limit][mine & free].min() >= np.sort(low[row, :limit][free])[-wanted]
            assert low[row, :limit][~mine & free].max() <= np.sort(high[row, :limit][free])[-wanted]
