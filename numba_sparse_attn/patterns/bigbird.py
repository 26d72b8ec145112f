"""Blocks: a window, global ones and random ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..formats.pieces import make_pieces
from ._arguments import check_int, title
from ._random import chosen, distinct_choices
from ._spans import blocks, spread
from .catalogue import entry
from .pattern import Pattern
from .random_keys import MAXIMAL_SEED

__all__ = ["bigbird"]


def _member(
    i: int, j: int, n: int, block: int, window_blocks: int, global_blocks: int, random_blocks: int, seed: int
) -> bool:
    row, column = i // block, j // block

    def regular(other: int) -> bool:
        return min(row, other) < global_blocks or abs(row - other) <= window_blocks

    if regular(column):
        return True
    others = [other for other in range(-(-n // block)) if not regular(other)]
    return others.index(column) in chosen(seed, row, random_blocks, len(others))


def _nnz(
    n: int, block: int, window_blocks: int, global_blocks: int, random_blocks: int, seed: int
) -> int | None:
    if n % block:
        return None
    count = n // block
    total = min(global_blocks, count) * count
    for row in range(global_blocks, count):
        seen = set(range(min(global_blocks, count))) | set(
            range(max(0, row - window_blocks), min(count, row + window_blocks + 1))
        )
        total += min(count, len(seen) + random_blocks)
    return total * block**2


@entry(
    examples=[
        {"n": 64, "block": 4, "window_blocks": 1, "global_blocks": 1, "random_blocks": 2, "seed": 0},
        {"n": 45, "block": 4, "window_blocks": 2, "global_blocks": 0, "random_blocks": 1, "seed": 1},
        {"n": 20, "block": 4, "window_blocks": 0, "global_blocks": 9, "random_blocks": 1, "seed": 1},
        {"n": 20, "block": 4, "window_blocks": 0, "global_blocks": 1, "random_blocks": 9, "seed": 1},
        {"n": 0, "block": 4, "window_blocks": 1, "global_blocks": 1, "random_blocks": 1, "seed": 0},
    ],
    member=_member,
    sample=lambda integers: {
        "n": integers(0, 24),
        "block": integers(1, 4),
        "window_blocks": integers(0, 2),
        "global_blocks": integers(0, 3),
        "random_blocks": integers(0, 4),
        "seed": integers(0, 2**64 - 1),
    },
    nnz=_nnz,
    scaled=lambda length: {
        "n": length,
        "block": 64,
        "window_blocks": 1,
        "global_blocks": 2,
        "random_blocks": 3,
        "seed": 0,
    },
)
def bigbird(
    n: int, block: int, window_blocks: int, global_blocks: int, random_blocks: int, seed: int
) -> Pattern:
    """Every block of queries sees the blocks around it, the first blocks and some random ones.

    ::

        {(i, j) : b(i) - window_blocks <= b(j) <= b(i) + window_blocks
                  or  b(i) < global_blocks  or  b(j) < global_blocks  or  b(j) in R(b(i))}
        b(x) = floor(x / block)

    with R(b) `random_blocks` of the blocks that the other terms leave out (all of them if there are no
    more), chosen as :func:`random_keys` chooses keys: of the m blocks left out, in ascending order,
    those at the first distinct values modulo m of block row b's stream. This is the form with internal
    global tokens (ITC); prepend tokens to the sequence for the extended form (ETC).

    Parameters
    ----------
    n : int
        Number of tokens. The last block is shorter where `block` does not divide it.
    block : int
        Tokens in a block, at least 1.
    window_blocks : int
        Blocks seen on each side besides one's own.
    global_blocks : int
        Blocks at the beginning that see all and are seen by all.
    random_blocks : int
        Random blocks of every other block row, besides those that it sees anyway.
    seed : int
        From 0 to 2**64 - 1.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``.

    Notes
    -----
    Pairs: at most ``n * block * (2 * window_blocks + 1 + 2 * global_blocks + random_blocks)``. Exactly,
    if `block` divides n: ``block**2`` times the sum over block rows of the blocks seen, which is
    ``n / block`` for a global row and otherwise ``min(n / block, s + random_blocks)`` with s the blocks
    in the window or global.

    Cost: O(n * block * (window + global + random blocks) * d) time; the pattern is
    ``1 + random_blocks`` pieces a block row.

    Reach: everything after two layers, by way of a global block.

    Use: for long documents; blocks of 64 or 128 fit the tiles.

    Avoid: in decoders without ``.causal()``, as global and random blocks look ahead.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> pattern = patterns.bigbird(4096, 64, 1, 2, 3, 0)
    >>> pattern.nnz, round(pattern.sparsity, 3)
    (2547712, 0.848)
    """
    n = check_int("n", n)
    block = check_int("block", block, low=1)
    window_blocks = check_int("window_blocks", window_blocks)
    global_blocks = check_int("global_blocks", global_blocks)
    random_blocks = check_int("random_blocks", random_blocks)
    seed = check_int("seed", seed, high=MAXIMAL_SEED)
    begins, ends = blocks(n, block)
    row = np.arange(len(begins), dtype=np.int64)
    first = np.maximum(row - window_blocks, 0)
    last = np.minimum(row + window_blocks, len(row) - 1)
    hub_tokens = min(global_blocks * block, n)
    pieces = [
        make_pieces(rows=(begins, ends), columns=(begins[first], ends[last])),
        make_pieces(rows=(0, hub_tokens), columns=(0, n)),
        make_pieces(rows=(0, n), columns=(0, hub_tokens)),
    ]
    query_block, key_block = _random_part(seed, global_blocks, random_blocks, first, last)
    rows, columns = (begins[query_block], ends[query_block]), (begins[key_block], ends[key_block])
    pieces.append(make_pieces(rows=rows, columns=columns))
    name = title(
        bigbird,
        n=n,
        block=block,
        window_blocks=window_blocks,
        global_blocks=global_blocks,
        random_blocks=random_blocks,
        seed=seed,
    )
    return Pattern.from_pieces((n, n), np.concatenate(pieces), name=name)


def _random_part(
    seed: int,
    global_blocks: int,
    random_blocks: int,
    first: npt.NDArray[np.int64],
    last: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(query block, key block) of the random choices; first .. last is the window of a block row."""
    count = len(first)
    rows = np.arange(min(global_blocks, count), count, dtype=np.int64)
    window_begin = np.maximum(first[rows], global_blocks)
    window_size = np.maximum(last[rows] + 1 - window_begin, 0)
    left_out = count - global_blocks - window_size
    indptr, ranks = distinct_choices(seed, rows, np.minimum(random_blocks, left_out), left_out)
    chosen_by = spread(np.diff(indptr))[0]
    key_block = ranks + global_blocks
    key_block += np.where(key_block >= window_begin[chosen_by], window_size[chosen_by], 0)
    return rows[chosen_by], key_block
