"""Every query sees every key."""

from __future__ import annotations

from ..formats.pieces import make_pieces
from ._arguments import check_int, title
from .catalogue import entry
from .pattern import Pattern

__all__ = ["full"]


@entry(
    examples=[{"n": 32}, {"n": 5, "n_keys": 9}, {"n": 1}, {"n": 0}, {"n": 3, "n_keys": 0}],
    member=lambda i, j, n, n_keys=None: True,
    sample=lambda integers: {"n": integers(0, 12), "n_keys": integers(0, 12)},
    nnz=lambda n, n_keys=None: n * (n if n_keys is None else n_keys),
    scaled=lambda length: {"n": length},
)
def full(n: int, *, n_keys: int | None = None) -> Pattern:
    """Every query sees every key: dense attention.

    ::

        {(i, j) : 0 <= i < n, 0 <= j < n_keys}

    Parameters
    ----------
    n : int
        Number of queries.
    n_keys : int, optional
        Number of keys; `n` if not given.

    Returns
    -------
    Pattern
        Of shape ``(n, n_keys)``.

    Notes
    -----
    Pairs: exactly ``n * n_keys``.

    Cost: O(n * n_keys * d) time; the pattern is one piece.

    Reach: everything after one layer.

    Use: as the baseline of a measurement, and for short sequences.

    Avoid: for long ones; their cost is what the other patterns are for.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.full(4, n_keys=6).nnz
    24
    """
    n = check_int("n", n)
    keys = n if n_keys is None else check_int("n_keys", n_keys)
    pieces = make_pieces(rows=(0, n), columns=(0, keys))
    return Pattern.from_pieces((n, keys), pieces, name=title(full, n=n, n_keys=n_keys))
