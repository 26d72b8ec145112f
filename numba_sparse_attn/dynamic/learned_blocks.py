"""Blocks of keys by the attention that a trained predictor expects them to receive."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..patterns._arguments import check_int, title
from ..patterns.heads import HeadPatterns
from ..patterns.pattern import Pattern
from . import _dense
from ._call import Floats
from ._seeded import normals
from .block_predictor import BlockPredictor
from .catalogue import Array, Case, Mask, entry

__all__ = ["learned_blocks"]


def _summaries(rows: Array, block: int) -> Array:
    parts = [rows[list(tokens)] for tokens in _dense.ranges(len(rows), block)]
    made = [np.concatenate([part.mean(axis=0), part.max(axis=0), part.min(axis=0)]) for part in parts]
    return np.array(made).reshape(-1, 3 * rows.shape[1])


def _step(distance: int) -> int:
    """Half octaves behind, up to 2**20 blocks; then those ahead."""
    starts = sorted({round(2.0 ** (half / 2)) for half in range(41)})
    behind = sum(start <= abs(distance) for start in starts)
    return behind + len(starts) if distance < 0 else behind


def _definition(
    q: Array,
    k: Array,
    predictor: BlockPredictor,
    budget: int | list[int] | None,
    share: float | list[float] | None = None,
    first: int = 0,
    local: int = 1,
    causal: bool = False,
) -> Mask:
    heads, n_q, _ = q.shape
    shape, block, query_block = (n_q, k.shape[1]), predictor.block, predictor.query_block
    masks = []
    for head in range(heads):
        own = {name: value[head % len(value)] for name, value in predictor.parameters.items()}
        queries = _summaries(q[head], query_block) @ own["query_weight"] + own["query_bias"]
        keys = _summaries(k[head * len(k) // heads], block) @ own["key_weight"] + own["key_bias"]
        scores = queries @ keys.T
        for a, rows in enumerate(_dense.ranges(n_q, query_block)):
            place = (rows[-1] + shape[1] - n_q) // block
            for b in range(len(keys)):
                scores[a, b] += own["distance"][_step(place - b)] + (own["start"][0] if b == 0 else 0.0)
        if share is None:
            mine = budget[head] if isinstance(budget, list) else budget
            masks.append(
                _dense.best_blocks(scores, shape, block, query_block, mine or 0, causal, (first, local))
            )
        else:
            part = share[head] if isinstance(share, list) else share
            masks.append(_within(scores, shape, block, query_block, part, causal, (first, local)))
    return np.stack(masks)


def _within(
    scores: Array,
    shape: tuple[int, int],
    block: int,
    query_block: int,
    share: float,
    causal: bool,
    always: tuple[int, int],
) -> Mask:
    """Blocks in the order of their predicted masses, until the next would be too many pairs."""
    seen = _dense.seen(*shape, causal)
    mask = _dense.best_blocks(scores, shape, block, query_block, 0, causal, always)
    budget, tiles = int(share * seen.sum()) - mask.sum(), []
    for a, rows in enumerate(_dense.ranges(shape[0], query_block)):
        columns = _dense.ranges(shape[1], block)
        reached = [b for b, keys in enumerate(columns) if seen[rows[-1], keys[0]]]
        powers = np.exp(scores[a, reached] - scores[a, reached].max(initial=-np.inf))
        for b, power in zip(reached, powers, strict=True):
            tile = np.ix_(list(rows), list(columns[b]))
            if not mask[tile].any():
                tiles.append((-power / powers.sum(), tile))
    for _, tile in sorted(tiles, key=lambda one: one[0]):
        budget -= seen[tile].sum()
        if budget < 0:
            break
        mask[tile] = seen[tile]
    return mask


def _example(seed: int, block: int, head_dim: int = 16, **sizes: int) -> BlockPredictor:
    """One that has been moved away from where training begins, as training does."""
    made = BlockPredictor.create(head_dim, block, dtype=np.float64, **sizes)
    for name, value in made.parameters.items():
        value += (0.03 if name.endswith("weight") else 0.5) * normals(seed + len(name), value.shape)
    return made


@entry(
    examples=lambda: [
        Case(48, 48, {"predictor": _example(1, 6), "budget": 2, "causal": True}),
        Case(48, 48, {"predictor": _example(2, 4), "budget": None, "share": 0.4, "causal": True}),
        Case(
            33,
            70,
            {"predictor": _example(3, 8, heads=4), "budget": [1, 2, 3, 40], "first": 1},
            heads=4,
            kv_heads=2,
        ),
        Case(
            40,
            25,
            {"predictor": _example(4, 4, query_block=7), "budget": 3, "local": 2, "causal": True},
        ),
        Case(
            27,
            45,
            {"predictor": _example(5, 5, query_block=1), "budget": None, "share": [0.2, 0.6]},
        ),
        Case(5, 0, {"predictor": _example(6, 4), "budget": 1}),
    ],
    dense=_definition,
    scaled=lambda length: Case(
        length,
        length,
        {"predictor": _example(7, 64, head_dim=64), "budget": None, "share": 0.125, "causal": True},
        head_dim=64,
    ),
)
def learned_blocks(
    q: Any,
    k: Any,
    predictor: BlockPredictor,
    budget: Any,
    *,
    share: Any = None,
    first: int = 0,
    local: int = 1,
    causal: bool = False,
) -> Pattern | HeadPatterns:
    """Every block of queries sees the blocks of keys that a trained predictor expects it to attend to.

    ::

        {(i, j) : block of j among the `budget` best for the block of i}
        score of blocks a, b = the mass that the predictor expects: the share of a's attention that b gets

    With `share` instead of `budget`, all blocks of queries of a head draw on one budget of pairs: those with
    the largest predicted masses are taken until the next one would not fit. Queries that attend to little
    then leave theirs to queries that attend to much. The `first` blocks and, where causal, those in which the
    queries themselves stand and the ``local - 1`` before come before all others.

    Parameters
    ----------
    q : array (..., heads, n_q, d) or (n_q, d)
    k : array (..., kv_heads, n_k, d) or (n_k, d)
        As :func:`numba_sparse_attn.sparse_attention` takes them, in host memory.
    predictor : BlockPredictor
        Trained by its method `fit`; it also says how large blocks are.
    budget : int, sequence of int, or None
        Blocks of keys for every block of queries, those that are always in among them, at least 1; one
        number, or one for every query head. None if there is a `share`.
    share : float or sequence of float, optional
        Share of the pairs that may be seen at all, above 0 and up to 1; one number, or one for every query
        head.
    first, local : int
        Blocks that are always in: at the beginning, and up to the queries' own.
    causal : bool
        Only keys ``j <= i + n_k - n_q`` may be seen.

    Returns
    -------
    Pattern or HeadPatterns
        A pattern for ``(n, d)`` arrays, else one for every head of every batch element: pieces where blocks
        of queries choose, a table of blocks where queries do.

    Notes
    -----
    Pairs: at most ``n_q * budget * block``, or `share` of those that may be seen, less a part of one block;
    more where what is always in is more than that.

    Cost: O((n_q + n_k) * d * (1 + d / block) + n_q * n_k * d / (query_block * block)) time to select.

    Use: where the model is known beforehand: a few sequences of its q and k train a predictor in seconds.

    Avoid: on other layers or models than it was trained on; :func:`block_top_k` needs no training.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q, k = np.random.default_rng(0).standard_normal((2, 2, 512, 16))
    >>> predictor = nsa.dynamic.BlockPredictor.create(16, 32, heads=2)
    >>> losses = predictor.fit(predictor.lessons(q, k, causal=True))
    >>> found = nsa.dynamic.learned_blocks(q, k, predictor, None, share=0.25, causal=True)
    >>> bool(found.nnz <= 0.25 * nsa.patterns.causal(512).nnz * 2)
    True
    """
    if not isinstance(predictor, BlockPredictor):
        raise ArgumentError(
            f"predictor of type {type(predictor).__name__}", "a BlockPredictor", "load or train one"
        )
    call = predictor.call(q, k, causal)
    if (budget is None) == (share is None):
        raise ArgumentError(
            f"budget={budget!r} and share={share!r}", "one of them", "pass None for the one not meant"
        )
    first, local = check_int("first", first), check_int("local", local, low=1)
    choice = predictor.blocks(call, first=first, local=local)
    name = title(
        learned_blocks,
        predictor=predictor,
        budget=budget,
        share=share,
        first=first,
        local=local,
        causal=causal,
    )
    if share is None:
        budgets, blocks = call.per_head("budget", budget, low=1), predictor.counts(call)[1]

        def select(batch: int, head: int) -> npt.NDArray[np.int32]:
            return choice.over_panels(blocks, budgets[head], predictor.scorer(call, batch, head))

        return choice.patterns(call.of_heads(select), name)
    shares = call.per_head_float("share", share)
    if not all(0.0 < part <= 1.0 for part in shares):
        raise ArgumentError(f"share={share!r}", "numbers above 0 and up to 1", "pass 0.1 for a tenth")
    seen = int(call.visible.sum())

    def spread(batch: int, head: int) -> npt.NDArray[np.int32]:
        masses: Floats = predictor.masses(call, batch, head)
        return choice.within(int(shares[head] * seen), masses)

    return choice.patterns(call.of_heads(spread), name)
