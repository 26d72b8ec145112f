"""Blocks that see only themselves."""

from __future__ import annotations

from ..formats.pieces import make_pieces
from ._arguments import check_int, title
from ._spans import blocks
from .catalogue import entry
from .pattern import Pattern

__all__ = ["block_local"]


@entry(
    examples=[{"n": 44, "block": 8}, {"n": 5, "block": 1}, {"n": 5, "block": 9}, {"n": 0, "block": 4}],
    member=lambda i, j, n, block: i // block == j // block,
    sample=lambda integers: {"n": integers(0, 20), "block": integers(1, 9)},
    nnz=lambda n, block: n // block * block**2 + (n % block) ** 2,
    scaled=lambda length: {"n": length, "block": 128},
)
def block_local(n: int, block: int) -> Pattern:
    """The sequence is cut into equal blocks; every query sees its own.

    ::

        {(i, j) : floor(i / block) = floor(j / block)}

    Parameters
    ----------
    n : int
        Number of tokens. The last block is shorter where `block` does not divide it.
    block : int
        Tokens in a block, at least 1.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``.

    Notes
    -----
    Pairs: exactly ``floor(n / block) * block**2 + (n mod block)**2``.

    Cost: O(n * block * d) time; the pattern is one piece a block.

    Reach: never beyond the block, however many layers.

    Use: as one kind of layer or head among others; multiples of 128 give full tiles only.

    Avoid: alone, as blocks never exchange anything.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.block_local(5, 2).toarray().astype(int)
    array([[1, 1, 0, 0, 0],
           [1, 1, 0, 0, 0],
           [0, 0, 1, 1, 0],
           [0, 0, 1, 1, 0],
           [0, 0, 0, 0, 1]])
    """
    n = check_int("n", n)
    block = check_int("block", block, low=1)
    spans = blocks(n, block)
    pieces = make_pieces(rows=spans, columns=spans)
    return Pattern.from_pieces((n, n), pieces, name=title(block_local, n=n, block=block))
