"""Blocks of keys by the attention that their compressed tokens receive."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import check_scale
from ..errors import ArgumentError, ShapeError
from ..formats.limits import Stretches
from ..patterns._arguments import check_int, title
from ..patterns.heads import HeadPatterns
from ..patterns.pattern import Pattern
from . import _dense
from ._blocks import Blocks
from ._call import Call
from .catalogue import Array, Case, Mask, entry

__all__ = ["nsa_blocks"]


def _definition(
    q: Array,
    k: Array,
    budget: int | list[int],
    block: int = 64,
    length: int = 32,
    stride: int = 16,
    first: int = 1,
    local: int = 2,
    query_block: int = 1,
    causal: bool = False,
    scale: float | None = None,
) -> Mask:
    heads, n_q, width = q.shape
    shape, group = (n_q, k.shape[1]), heads // len(k)
    starts = range(0, shape[1] - length + 1, stride)
    ends = np.array([start + length - 1 for start in starts], np.int64)
    allowed = _dense.seen(*shape, causal)[:, ends]
    masks = []
    for shared, keys in enumerate(k):
        importance = np.zeros((n_q, len(_dense.ranges(shape[1], block))))
        mine = budget[shared * group] if isinstance(budget, list) else budget
        for head in range(shared * group, (shared + 1) * group):
            means = np.array([keys[start : start + length].mean(axis=0) for start in starts])
            scores = q[head] @ means.reshape(-1, width).T * (width**-0.5 if scale is None else scale)
            weights = _dense.probabilities(scores, allowed)
            for number, start in enumerate(starts):
                for key in range(start, start + length):
                    importance[:, key // block] += weights[:, number] / length
        rows = _dense.ranges(n_q, query_block)
        shared_scores = np.array([importance[list(queries)].sum(axis=0) for queries in rows])
        mask = _dense.best_blocks(shared_scores, shape, block, query_block, mine, causal, (first, local))
        masks += [mask] * group
    return np.stack(masks)


@entry(
    examples=lambda: [
        Case(48, 48, {"budget": 4, "block": 4, "length": 4, "stride": 2, "causal": True}),
        Case(
            33,
            70,
            {"budget": [3, 3, 1, 1], "block": 8, "length": 8, "stride": 4, "first": 0},
            heads=4,
            kv_heads=2,
        ),
        Case(40, 25, {"budget": 3, "block": 5, "length": 3, "stride": 3, "local": 1, "causal": True}),
        Case(48, 48, {"budget": 4, "block": 4, "length": 4, "stride": 2, "query_block": 5, "causal": True}),
        Case(5, 3, {"budget": 1, "block": 4, "length": 4, "stride": 4}),
    ],
    dense=_definition,
    scaled=lambda length: Case(length, length, {"budget": 16, "causal": True}, heads=4, head_dim=64),
)
def nsa_blocks(
    q: Any,
    k: Any,
    budget: Any,
    *,
    block: int = 64,
    length: int = 32,
    stride: int = 16,
    first: int = 1,
    local: int = 2,
    query_block: int = 1,
    causal: bool = False,
    scale: float | None = None,
    compressed: Any = None,
) -> Pattern | HeadPatterns:
    """Every query sees the blocks of keys that it, and the heads of its group, attend to when compressed.

    ::

        {(i, j) : block of j among the `budget` best for i}
        score of i, b = sum over heads h of the group, over stretches c, of p_h(i, c) * |c and b| / length
        p_h(i, .) = softmax over the stretches that i may see of scale * q_hi . compressed k_c

    with stretch c the keys ``c * stride .. c * stride + length - 1``. The `first` blocks and, where causal,
    the block in which the query stands and the ``local - 1`` before it come before all others.

    Parameters
    ----------
    q : array (..., heads, n_q, d) or (n_q, d)
    k : array (..., kv_heads, n_k, d) or (n_k, d)
        As :func:`numba_sparse_attn.sparse_attention` takes them, in host or GPU memory.
    budget : int or sequence of int
        Blocks of every query, those that are always in among them, at least 1; one number, or one for every
        query head, the same for all heads of a group.
    block, length, stride : int
        Keys in a block and in a stretch, and keys from one stretch to the next.
    first, local : int
        Blocks that are always in: at the beginning, and up to the query's own.
    query_block : int
        Queries in a row that choose together, by the sum of their scores. Where this and `block` are
        multiples of 128, blocks are full tiles.
    causal : bool
        Only keys ``j <= i + n_k - n_q`` may be seen, and only stretches that end there or before.
    scale : float, optional
        Factor on q k^T; ``1 / sqrt(d)`` if not given.
    compressed : array (..., kv_heads, (n_k - length) // stride + 1, d), optional
        Compressed keys by a map of your own; means (:func:`compress`) if not given.

    Returns
    -------
    Pattern or HeadPatterns
        A pattern for ``(n, d)`` arrays, else one for every key head of every batch element, which the query
        heads of its group share. Held as a table of blocks; rows, or pieces where queries choose together,
        are made when they are needed.

    Notes
    -----
    Pairs: at most ``n_q * max(budget, first + local) * block`` in each head.

    Cost: O(n_q * n_k * d / stride) time to select: attention over the compressed keys.

    Use: as the selected branch of native sparse attention (NSA, 2025); :func:`nsa_branches` has all three.

    Avoid: where heads of a group look at different places.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.repeat(np.eye(4), 2, axis=0)[[0, 1, 2, 3, 4, 5, 6, 0]]
    >>> made = nsa.dynamic.nsa_blocks(q, k, 2, block=2, length=2, stride=2, first=0, local=1, causal=True)
    >>> made.toindices()[-1].tolist()  # its own block, and the first, which is like it
    [0, 1, 6, 7]
    """
    call = Call.of(q, k, causal, on_device=True)
    budgets = call.per_head("budget", budget, low=1)
    for head, number in enumerate(budgets):
        if number != budgets[head - head % call.group]:
            raise ArgumentError(
                f"budget={number} for head {head}, and another one for a head of its group",
                "one budget for all heads that share a key head: they choose together",
                f"give every {call.group} heads in a row the same budget",
            )
    block = check_int("block", block, low=1)
    first, local = check_int("first", first), check_int("local", local, low=1)
    rows = check_int("query_block", query_block, low=1)
    factor = check_scale(scale, call.sizes.head_dim)
    stretches = Stretches(check_int("length", length, low=1), check_int("stride", stride, low=1))
    tokens = _compressed_keys(call, stretches, compressed)
    name = title(
        nsa_blocks,
        budget=budget,
        block=block,
        length=length,
        stride=stride,
        first=first,
        local=local,
        query_block=query_block,
        causal=causal,
        scale=scale,
    )
    choice = Blocks(call, block, query_block=rows, first=first, local=local)
    seen = stretches.seen(call.n_q, call.n_k, causal=call.causal)
    return choice.patterns(choice.best_attended(tokens, stretches, seen, factor, budgets), name)


def _compressed_keys(call: Call, stretches: Stretches, compressed: Any) -> Any:
    """Rows, one a stretch: the user's own or means."""
    tools, sizes = call.tools, call.sizes
    if compressed is None:
        return tools.compressed(tools.keys, stretches)
    given = call.beside(compressed, "compressed")
    lead = () if sizes.flat else (*sizes.lead, sizes.kv_heads)
    wanted = (*lead, stretches.count(call.n_k), sizes.head_dim)
    if tuple(given.shape) != wanted or given.dtype != sizes.dtype:
        raise ShapeError(
            f"compressed of {given.dtype.name} with shape {given.shape}",
            f"an array of {sizes.dtype.name} with shape {wanted}",
            "compress the keys to one token a stretch",
        )
    return tools.given(given)
