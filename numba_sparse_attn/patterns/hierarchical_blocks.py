"""Near blocks in full, far ones through summaries that get coarser with distance."""

from __future__ import annotations

import numpy as np

from ..formats.pieces import Axis, PieceArray, make_pieces
from ._arguments import check_int, title
from ._spans import blocks
from .catalogue import entry
from .pattern import Pattern

__all__ = ["hierarchical_blocks"]


def _member(i: int, j: int, n: int, block: int, levels: int) -> bool:
    if abs(i // block - j // block) <= 1:
        return True
    for level in range(min(levels, n)):
        size = block << level
        is_last = j % size == size - 1 or j == n - 1
        far = abs(i // size - j // size) > 1
        parents_near = abs(i // (2 * size) - j // (2 * size)) <= 1
        if is_last and far and (parents_near or level == levels - 1):
            return True
    return False


@entry(
    examples=[
        {"n": 64, "block": 4, "levels": 3},
        {"n": 61, "block": 4, "levels": 3},
        {"n": 40, "block": 4, "levels": 1},
        {"n": 7, "block": 9, "levels": 2},
        {"n": 0, "block": 2, "levels": 2},
    ],
    member=_member,
    sample=lambda integers: {"n": integers(0, 30), "block": integers(1, 5), "levels": integers(1, 4)},
    scaled=lambda length: {"n": length, "block": 64, "levels": 4},
)
def hierarchical_blocks(n: int, block: int, levels: int) -> Pattern:
    """Every query sees the blocks around it in full and one token each of ever larger blocks farther away.

    ::

        {(i, j) : b(0, i) - 1 <= b(0, j) <= b(0, i) + 1}
        for l = 0 .. levels - 1, the (i, j) with
            j the last token of its block at level l (the last block ends with n - 1),
            |b(l, i) - b(l, j)| > 1,
            |b(l + 1, i) - b(l + 1, j)| <= 1  or  l = levels - 1
        b(l, x) = floor(x / (block * 2**l))

    So at every level a block's summary is seen from where the block is neither a neighbor nor inside a
    larger block that is far away itself; at the coarsest level, from everywhere else.

    Parameters
    ----------
    n : int
        Number of tokens.
    block : int
        Tokens in a block of level 0, at least 1.
    levels : int
        Levels of blocks, at least 1; the coarsest blocks have ``block * 2**(levels - 1)`` tokens.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``. Its ``.causal()`` keeps the summaries of past blocks: each lies at the end of
        what it stands for.

    Notes
    -----
    Pairs: at most ``n * (3 * block + 3 * (levels - 1) + n / (block * 2**(levels - 1)) + levels)``.

    Cost: O(n * (block + levels + n / (block * 2**levels)) * d) time, O(n * (block + log(n)) * d) with
    ``levels = log2(n / block)``; the pattern is a few pieces a block.

    Reach: everything after at most ``levels + 1`` layers: from summary to summary, a level or two finer
    with each, and into the block.

    Use: where detail matters nearby and the gist suffices far away.

    Avoid: where a single far token must be found exactly.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.hierarchical_blocks(64, 4, 3).rows().indices[:14].tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 11, 15, 23, 31, 47, 63]
    """
    n = check_int("n", n)
    block = check_int("block", block, low=1)
    levels = check_int("levels", levels, low=1)
    begins, ends = blocks(n, block)
    pieces = [make_pieces(rows=(begins, ends), columns=(begins - block, np.minimum(ends + block, n)))]
    for level in range(levels):
        if block << level >= n:  # one block has nothing far away
            break
        pieces += _far_pieces(n, block << level, coarsest=level == levels - 1)
    name = title(hierarchical_blocks, n=n, block=block, levels=levels)
    return Pattern.from_pieces((n, n), np.concatenate(pieces), name=name)


def _far_pieces(n: int, size: int, *, coarsest: bool) -> list[PieceArray]:
    """What blocks of `size` see of the blocks that are not their neighbors: one token of each."""
    begins, ends = blocks(n, size)
    number = np.arange(len(begins), dtype=np.int64)
    if coarsest:
        first, stop = np.zeros_like(number), np.full_like(number, n)
    else:
        pair = number // 2
        first, stop = np.maximum(2 * (pair - 1) * size, 0), np.minimum(2 * (pair + 2) * size, n)
    before, behind = (first, (number - 1) * size), ((number + 2) * size, stop)
    pieces = [
        make_pieces(rows=(begins, ends), columns=columns, axis=Axis.COLUMN, step=size, phase=size - 1)
        for columns in (before, behind)
    ]
    # A last block that is cut short ends with n - 1 instead; it is seen by the rows with it `behind`.
    sees_last = (behind[0] < n) & (stop == n)
    pieces.append(make_pieces(rows=(begins[sees_last], ends[sees_last]), columns=(n - 1, n)))
    return pieces
