"""Chunks that see themselves and some chunks before them."""

from __future__ import annotations

import numpy as np

from ..formats.pieces import UNBOUNDED, make_pieces
from ._arguments import check_flag, check_int, title
from ._spans import blocks
from .catalogue import entry
from .pattern import Pattern

__all__ = ["chunked_causal"]


def _member(i: int, j: int, n: int, chunk: int, past: int | None = 0, lookahead: bool = False) -> bool:
    chunks_back = i // chunk - j // chunk
    if chunks_back == 0:
        return lookahead or i >= j
    return chunks_back > 0 and (past is None or chunks_back <= past)


def _nnz(n: int, chunk: int, past: int | None = 0, lookahead: bool = False) -> int:
    total = 0
    for begin in range(0, n, chunk):
        size = min(chunk, n - begin)
        before = begin if past is None else min(begin, past * chunk)
        total += size * before + (size * size if lookahead else size * (size + 1) // 2)
    return total


@entry(
    examples=[
        {"n": 42, "chunk": 10},
        {"n": 42, "chunk": 10, "past": 1},
        {"n": 23, "chunk": 5, "past": None, "lookahead": True},
        {"n": 9, "chunk": 20, "past": 3},
        {"n": 0, "chunk": 4},
    ],
    member=_member,
    sample=lambda integers: {
        "n": integers(0, 20),
        "chunk": integers(1, 7),
        "past": (None, 0, 1, 2)[integers(0, 3)],
        "lookahead": bool(integers(0, 1)),
    },
    nnz=_nnz,
    scaled=lambda length: {"n": length, "chunk": 512},
)
def chunked_causal(n: int, chunk: int, *, past: int | None = 0, lookahead: bool = False) -> Pattern:
    """Every query sees what came before it in its own chunk and in the `past` chunks before.

    ::

        {(i, j) : j <= i, c(i) - past <= c(j)}              c(x) = floor(x / chunk)
        {(i, j) : c(i) - past <= c(j) <= c(i)}              lookahead=True

    Parameters
    ----------
    n : int
        Number of tokens. The last chunk is shorter where `chunk` does not divide it.
    chunk : int
        Tokens in a chunk, at least 1.
    past : int or None
        How many earlier chunks are seen; None sees all of them.
    lookahead : bool
        See the rest of one's own chunk, too.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``.

    Notes
    -----
    Pairs: exactly the sum over the chunks, of m tokens after b earlier ones, of
    ``m * min(b, past * chunk) + m * (m + 1) / 2``; with lookahead ``m**2`` is the last term.

    Cost: O(n * (past + 1) * chunk * d) time; the pattern is one piece a chunk.

    Reach: `past` chunks further back with every layer; with past=0 never out of the chunk.

    Use: past=0 for long-context decoders that mix chunked with global layers; lookahead with past=None for
    models that write a block at a time, and for streaming encoders.

    Avoid: past=0 in every layer, as chunks then never exchange anything.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.chunked_causal(4, 2, past=1, lookahead=True).toarray().astype(int)
    array([[1, 1, 0, 0],
           [1, 1, 0, 0],
           [1, 1, 1, 1],
           [1, 1, 1, 1]])
    """
    n = check_int("n", n)
    chunk = check_int("chunk", chunk, low=1)
    lookahead = check_flag("lookahead", lookahead)
    begins, ends = blocks(n, chunk)
    if past is None:
        first = np.zeros_like(begins)
    else:
        first = np.maximum(begins - min(check_int("past", past), len(begins)) * chunk, 0)
    ahead = UNBOUNDED if lookahead else 0
    pieces = make_pieces(rows=(begins, ends), columns=(first, ends), differences=(-UNBOUNDED, ahead))
    name = title(chunked_causal, n=n, chunk=chunk, past=past, lookahead=lookahead)
    return Pattern.from_pieces((n, n), pieces, name=name)
