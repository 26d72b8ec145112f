"""Blocks whose last tokens everybody sees."""

from __future__ import annotations

import numpy as np

from ..formats.pieces import UNBOUNDED, Axis, make_pieces
from ..formats.tiles import TILE
from ._arguments import check_flag, check_int, title
from ._spans import blocks
from .catalogue import Integers, entry
from .pattern import Pattern

__all__ = ["fixed"]


def _member(i: int, j: int, n: int, block: int, summary: int, causal: bool = False) -> bool:
    visible = i // block == j // block or j % block in range(block - summary, block)
    return visible and (i >= j or not causal)


def _nnz(n: int, block: int, summary: int, causal: bool = False) -> int:
    whole, rest = divmod(n, block)
    if causal:
        local = whole * (block * (block + 1) // 2) + rest * (rest + 1) // 2
        return local + summary * (block * (whole * (whole - 1) // 2) + rest * whole)
    partial = max(0, rest - (block - summary))  # summary tokens in a last, shorter block
    local, columns = whole * block**2 + rest**2, whole * summary + partial
    return local + n * columns - whole * block * summary - rest * partial


def _sample(integers: Integers) -> dict[str, int | bool]:
    block = integers(1, 6)
    return {
        "n": integers(0, 20),
        "block": block,
        "summary": integers(0, block),
        "causal": bool(integers(0, 1)),
    }


@entry(
    examples=[
        {"n": 48, "block": 8, "summary": 2},
        {"n": 47, "block": 8, "summary": 2, "causal": True},
        {"n": 6, "block": 2, "summary": 2},
        {"n": 6, "block": 9, "summary": 4},
        {"n": 0, "block": 4, "summary": 1},
    ],
    member=_member,
    sample=_sample,
    nnz=_nnz,
    scaled=lambda length: {"n": length, "block": 128, "summary": 8},
)
def fixed(n: int, block: int, summary: int, *, causal: bool = False) -> Pattern:
    """Every query sees its own block and the last `summary` tokens of every block.

    ::

        {(i, j) : floor(i / block) = floor(j / block)  or  j mod block >= block - summary}
        ... and j <= i                                                          causal=True

    Parameters
    ----------
    n : int
        Number of tokens.
    block : int
        Tokens in a block, at least 1.
    summary : int
        How many tokens at the end of each block are seen from everywhere, from 0 to `block`. A
        shorter last block may have fewer, or none.
    causal : bool
        Look back only, which makes it the fixed pattern of the Sparse Transformer.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``.

    Notes
    -----
    Pairs: exactly ``n * (block + summary * (n / block - 1))`` for n a multiple of `block`; if causal
    ``n * (block + 1 + summary * (n / block - 1)) / 2``.

    Cost: O(n * (block + summary * n / block) * d) time, O(n * sqrt(n * summary) * d) at the best
    `block`; the pattern is at most two pieces a block.

    Reach: everything after two layers: into the summary tokens of a block, and from there to all.

    Use: for text, where a model can learn to put a summary of a block at its end.

    Avoid: without a window beside it where a token needs the end of the block before in detail.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.fixed(6, 3, 1).toarray().astype(int)
    array([[1, 1, 1, 0, 0, 1],
           [1, 1, 1, 0, 0, 1],
           [1, 1, 1, 0, 0, 1],
           [0, 0, 1, 1, 1, 1],
           [0, 0, 1, 1, 1, 1],
           [0, 0, 1, 1, 1, 1]])
    """
    n = check_int("n", n)
    block = check_int("block", block, low=1)
    summary = check_int("summary", summary, high=block)
    causal = check_flag("causal", causal)
    band = (-UNBOUNDED, 0 if causal else UNBOUNDED)
    begins, ends = blocks(n, block)
    local = make_pieces(rows=(begins, ends), columns=(begins, ends), differences=band)
    if summary * block <= TILE:  # few summary tokens in a tile: a lattice each; else a strip a block
        phases = np.arange(block - summary, block)
        seen = make_pieces(
            rows=(0, n), columns=(0, n), differences=band, axis=Axis.COLUMN, step=block, phase=phases
        )
    else:
        strips = (begins + block - summary, ends)
        seen = make_pieces(rows=(0, n), columns=strips, differences=band)
    name = title(fixed, n=n, block=block, summary=summary, causal=causal)
    return Pattern.from_pieces((n, n), np.concatenate([local, seen]), name=name)
