"""Training of models that denoise a sequence block by block."""

from __future__ import annotations

import numpy as np

from ..formats.pieces import make_pieces
from ._arguments import check_int, title
from ._spans import blocks
from .catalogue import entry
from .pattern import Pattern

__all__ = ["block_diffusion"]


def _member(i: int, j: int, length: int, block: int) -> bool:
    (query_clean, query), (key_clean, key) = divmod(i, length), divmod(j, length)
    steps_back = query // block - key // block
    if query_clean:
        return key_clean == 1 and steps_back >= 0
    return steps_back > 0 if key_clean else steps_back == 0


def _nnz(length: int, block: int) -> int:
    sizes = [min(block, length - begin) for begin in range(0, length, block)]
    return sum(2 * size * (number * block + size) for number, size in enumerate(sizes))


@entry(
    examples=[
        {"length": 24, "block": 4},
        {"length": 11, "block": 4},
        {"length": 3, "block": 9},
        {"length": 0, "block": 2},
    ],
    member=_member,
    sample=lambda integers: {"length": integers(0, 10), "block": integers(1, 5)},
    nnz=_nnz,
    scaled=lambda length: {"length": length // 2, "block": 64},
)
def block_diffusion(length: int, block: int) -> Pattern:
    """A noisy copy of a sequence denoised block by block, given the clean blocks before.

    The tokens are the noisy copy, then the clean one; b(x) is the block of a token in its own copy.

    ::

        noisy i -> noisy j    b(i) = b(j)
        noisy i -> clean j    b(j) < b(i)
        clean i -> clean j    b(j) <= b(i)

    Parameters
    ----------
    length : int
        Tokens of one copy. The last block is shorter where `block` does not divide it.
    block : int
        Tokens that are denoised together, at least 1.

    Returns
    -------
    Pattern
        Of shape ``(2 * length, 2 * length)``.

    Notes
    -----
    Pairs: exactly ``length * (length + block)`` where `block` divides the length.

    Cost: O(length * (length + block) * d) time; the pattern is three pieces a block.

    Reach: a block and all clean ones before it after one layer.

    Use: to train block diffusion models on all blocks in one pass.

    Avoid: to sample from them; :func:`chunked_causal` with past=None and lookahead is what that needs.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.block_diffusion(2, 1).toarray().astype(int)
    array([[1, 0, 0, 0],
           [0, 1, 1, 0],
           [0, 0, 1, 0],
           [0, 0, 1, 1]])
    """
    length = check_int("length", length)
    block = check_int("block", block, low=1)
    begins, ends = blocks(length, block)
    pieces = [
        make_pieces(rows=(begins, ends), columns=(begins, ends)),
        make_pieces(rows=(begins, ends), columns=(length, length + begins)),
        make_pieces(rows=(length + begins, length + ends), columns=(length, length + ends)),
    ]
    name = title(block_diffusion, length=length, block=block)
    return Pattern.from_pieces((2 * length, 2 * length), np.concatenate(pieces), name=name)
