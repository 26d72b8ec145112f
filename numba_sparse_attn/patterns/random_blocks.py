"""A few random blocks of keys for every block of queries."""

from __future__ import annotations

import numpy as np

from ..formats.pieces import make_pieces
from ._arguments import check_int, title
from ._random import chosen, distinct_choices
from ._spans import blocks, spread
from .catalogue import entry
from .pattern import Pattern
from .random_keys import MAXIMAL_SEED

__all__ = ["random_blocks"]


def _nnz(n: int, block: int, per_row: int, seed: int) -> int | None:
    count = n // block
    return count * min(per_row, count) * block**2 if n == count * block else None


@entry(
    examples=[
        {"n": 48, "block": 6, "per_row": 2, "seed": 0},
        {"n": 45, "block": 6, "per_row": 2, "seed": 0},
        {"n": 5, "block": 2, "per_row": 9, "seed": 3},
        {"n": 0, "block": 2, "per_row": 1, "seed": 0},
    ],
    member=lambda i, j, n, block, per_row, seed: (
        j // block in chosen(seed, i // block, per_row, -(-n // block))
    ),
    sample=lambda integers: {
        "n": integers(0, 24),
        "block": integers(1, 5),
        "per_row": integers(0, 6),
        "seed": integers(0, 2**64 - 1),
    },
    nnz=_nnz,
    scaled=lambda length: {"n": length, "block": 128, "per_row": 4, "seed": 0},
)
def random_blocks(n: int, block: int, per_row: int, seed: int) -> Pattern:
    """Every block of queries sees a few blocks of keys chosen at random.

    ::

        {(i, j) : floor(j / block) in R(floor(i / block))}

    with R as in :func:`random_keys`, for a sequence of ``ceil(n / block)`` blocks.

    Parameters
    ----------
    n : int
        Number of tokens. The last block is shorter where `block` does not divide it.
    block : int
        Tokens in a block, at least 1.
    per_row : int
        Blocks of keys for every block of queries; all of them where that is their number or more.
    seed : int
        From 0 to 2**64 - 1.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``.

    Notes
    -----
    Pairs: exactly ``n * per_row * block`` if `block` divides n and there are `per_row` blocks; never more.

    Cost: O(n * per_row * block * d) time; the pattern is one piece a chosen block.

    Reach: everything after about ``log(n / block) / log(per_row)`` layers.

    Use: as the random part of block patterns; multiples of 128 give full tiles only.

    Avoid: alone, as a block need not see even itself.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.random_blocks(8, 2, 1, 0).rows().indices[::4].tolist()  # the first key of every block
    [6, 0, 0, 0]
    """
    n = check_int("n", n)
    block = check_int("block", block, low=1)
    per_row = check_int("per_row", per_row)
    seed = check_int("seed", seed, high=MAXIMAL_SEED)
    begins, ends = blocks(n, block)
    count = len(begins)
    numbers = np.arange(count, dtype=np.int64)
    if per_row < count:
        indptr, key_block = distinct_choices(seed, numbers, np.full(count, per_row), np.full(count, count))
        query_block = spread(np.diff(indptr))[0]
        rows, columns = (begins[query_block], ends[query_block]), (begins[key_block], ends[key_block])
        pieces = make_pieces(rows=rows, columns=columns)
    else:
        pieces = make_pieces(rows=(0, n), columns=(0, n))
    name = title(random_blocks, n=n, block=block, per_row=per_row, seed=seed)
    return Pattern.from_pieces((n, n), pieces, name=name)
