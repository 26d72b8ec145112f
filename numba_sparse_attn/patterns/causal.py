"""Every query sees itself and what came before."""

from __future__ import annotations

from ..formats.pieces import UNBOUNDED, make_pieces
from ._arguments import check_alignment, check_int, title
from .catalogue import entry
from .pattern import Pattern

__all__ = ["causal"]


def _member(i: int, j: int, n: int, n_keys: int | None = None, align: str = "bottom-right") -> bool:
    if align == "top-left":
        return j <= i
    queries_left, keys_left = n - 1 - i, (n if n_keys is None else n_keys) - 1 - j
    return keys_left >= queries_left


def _nnz(n: int, n_keys: int | None = None, align: str = "bottom-right") -> int:
    keys = n if n_keys is None else n_keys
    side = min(n, keys)
    extra = max(0, n - keys) * keys if align == "top-left" else max(0, keys - n) * n
    return side * (side + 1) // 2 + extra


@entry(
    examples=[
        {"n": 32},
        {"n": 4, "n_keys": 7},
        {"n": 7, "n_keys": 4},
        {"n": 4, "n_keys": 7, "align": "top-left"},
        {"n": 7, "n_keys": 4, "align": "top-left"},
        {"n": 0},
    ],
    member=_member,
    sample=lambda integers: {
        "n": integers(0, 12),
        "n_keys": integers(0, 12),
        "align": ("bottom-right", "top-left")[integers(0, 1)],
    },
    nnz=_nnz,
    scaled=lambda length: {"n": length},
)
def causal(n: int, *, n_keys: int | None = None, align: str = "bottom-right") -> Pattern:
    """Every query sees itself and the keys before it.

    ::

        {(i, j) : j <= i + n_keys - n}      align="bottom-right"
        {(i, j) : j <= i}                   align="top-left"

    Parameters
    ----------
    n : int
        Number of queries.
    n_keys : int, optional
        Number of keys; `n` if not given, and then both alignments are the same.
    align : {"bottom-right", "top-left"}
        "bottom-right": the last query sees the last key, as in decoding with a cache of earlier keys.
        "top-left": the first query sees just the first key.

    Returns
    -------
    Pattern
        Of shape ``(n, n_keys)``. Where there are more queries than keys, "bottom-right" leaves the
        first ``n - n_keys`` queries without keys.

    Notes
    -----
    Pairs: exactly ``m * (m + 1) / 2 + extra`` with ``m = min(n, n_keys)``; extra is
    ``n * max(0, n_keys - n)`` for "bottom-right", ``n_keys * max(0, n - n_keys)`` for "top-left".

    Cost: O(n * n_keys * d) time, half of it for n = n_keys; the pattern is one piece.

    Reach: the whole past after one layer.

    Use: in autoregressive models. Any other pattern becomes causal with its ``.causal()``.

    Avoid: in encoders, which may look ahead.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.causal(2, n_keys=4).toarray().astype(int)
    array([[1, 1, 1, 0],
           [1, 1, 1, 1]])
    """
    n = check_int("n", n)
    keys = n if n_keys is None else check_int("n_keys", n_keys)
    present = check_alignment(n, keys, align)
    pieces = make_pieces(rows=(0, n), columns=(0, keys), differences=(-UNBOUNDED, present))
    return Pattern.from_pieces((n, keys), pieces, name=title(causal, n=n, n_keys=n_keys, align=align))
