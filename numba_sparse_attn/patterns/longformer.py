"""A window, global tokens and, if wanted, random keys."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..formats.pieces import make_pieces
from ._arguments import check_int, check_ints, title
from ._random import chosen
from .catalogue import Integers, entry
from .global_tokens import global_pieces
from .pattern import Pattern
from .random_keys import random_keys

__all__ = ["longformer"]


def _member(i: int, j: int, n: int, window: int, tokens: list[int], random: int = 0, seed: int = 0) -> bool:
    return not {i, j}.isdisjoint(tokens) or abs(i - j) <= window or j in chosen(seed, i, random, n)


def _nnz(n: int, window: int, tokens: list[int], random: int = 0, seed: int = 0) -> int | None:
    if random:
        return None
    hubs = set(tokens)
    seen = [min(n - 1, i + window) - max(0, i - window) + 1 for i in range(n)]
    both_hubs = sum(abs(hub - other) > window for hub in hubs for other in hubs)
    return sum(seen) + 2 * sum(n - seen[hub] for hub in hubs) - both_hubs


def _sample(integers: Integers) -> dict[str, object]:
    n = integers(1, 16)
    return {
        "n": n,
        "window": integers(0, 5),
        "tokens": [integers(0, n - 1) for _ in range(integers(0, 3))],
        "random": integers(0, 3),
        "seed": integers(0, 2**64 - 1),
    }


@entry(
    examples=[
        {"n": 48, "window": 4, "tokens": [0, 24]},
        {"n": 48, "window": 2, "tokens": [0], "random": 2, "seed": 7},
        {"n": 5, "window": 9, "tokens": []},
        {"n": 0, "window": 1, "tokens": []},
    ],
    member=_member,
    sample=_sample,
    nnz=_nnz,
    scaled=lambda length: {"n": length, "window": 256, "tokens": list(range(16))},
)
def longformer(n: int, window: int, tokens: npt.ArrayLike, *, random: int = 0, seed: int = 0) -> Pattern:
    """Every query sees a window and the global tokens, which see everything; random keys on request.

    ::

        {(i, j) : i - window <= j <= i + window  or  i in tokens  or  j in tokens  or  j in R(i)}

    with R(i) the `random` keys that ``random_keys(n, random, seed)`` gives query i.

    Parameters
    ----------
    n : int
        Number of tokens.
    window : int
        Keys seen on each side besides the query's own.
    tokens : int array
        Global positions from 0 to n - 1.
    random : int
        Random keys of every query, some of which may be seen already.
    seed : int
        From 0 to 2**64 - 1.

    Returns
    -------
    Pattern
        Of shape ``(n, n)``.

    Notes
    -----
    Pairs: at most ``n * (2 * window + 1 + 2 * g + random)`` for g global tokens. Exactly, without
    random keys: the window's, plus ``2 * (n - w(g))`` for each global token that sees w(g) keys in its
    window, less the ordered pairs of global tokens further apart than `window`.

    Cost: O(n * (window + g + random) * d) time; without random keys the pattern is one piece and two a
    run of neighboring global tokens.

    Reach: everything after two layers, by way of a global token.

    Use: for long documents with a classification token, a question, or separators.

    Avoid: in decoders without ``.causal()``, as global tokens look ahead.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> patterns.longformer(5, 1, [0]).toarray().astype(int)
    array([[1, 1, 1, 1, 1],
           [1, 1, 1, 0, 0],
           [1, 1, 1, 1, 0],
           [1, 0, 1, 1, 1],
           [1, 0, 0, 1, 1]])
    """
    n = check_int("n", n)
    window = check_int("window", window)
    positions = check_ints("tokens", tokens, high=n - 1)
    random = check_int("random", random)
    drawn = random_keys(n, random, seed)
    local = make_pieces(rows=(0, n), columns=(0, n), differences=(-window, window))
    pieces = np.concatenate([local, global_pieces(n, positions)])
    name = title(longformer, n=n, window=window, tokens=positions, random=random, seed=seed)
    pattern = Pattern.from_pieces((n, n), pieces, name=name)
    if random:
        pattern |= drawn
        pattern.name = name
    return pattern
