"""A window and the tokens that structure marks."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..patterns._arguments import check_int
from ..patterns.heads import HeadPatterns
from ..patterns.pattern import Pattern
from ._call import Call, named
from ._landmarks import dense_landmarks, landmark_pattern
from ._panels import largest
from .catalogue import Array, Case, Mask, by_head, entry

__all__ = ["landmarks_by_structure"]


def _definition(q: Array, k: Array, budget: int, strength: Array, window: int, causal: bool = False) -> Mask:
    order = np.argsort(-strength, kind="stable")[:budget]
    return dense_landmarks(len(q), len(k), order[strength[order] > 0], window, causal)


def _marks(length: int) -> Array:
    """Sentences of 5 to 9 tokens, and every fourth of their ends also that of a paragraph."""
    ends = np.cumsum(5 + np.arange(length) % 5)
    strength = np.zeros(length)
    strength[ends[ends < length]] = 1.0
    strength[ends[3::4][ends[3::4] < length]] = 2.0
    return strength


@entry(
    examples=lambda: [
        Case(48, 48, {"budget": 5, "strength": _marks(48), "window": 3, "causal": True}),
        Case(
            33,
            70,
            {"budget": [0, 3, 9, 80], "strength": np.stack([_marks(70)] * 4), "window": 2},
            heads=4,
            kv_heads=2,
        ),
        Case(40, 25, {"budget": 2, "strength": _marks(25), "window": 0, "causal": True}),
        Case(5, 0, {"budget": 1, "strength": np.zeros(0), "window": 1}),
    ],
    dense=by_head(_definition, "budget", "strength"),
    scaled=lambda length: Case(
        length,
        length,
        {"budget": length // 32, "strength": _marks(length), "window": 64, "causal": True},
        head_dim=64,
    ),
)
def landmarks_by_structure(
    q: Any, k: Any, budget: Any, strength: Any, window: int, *, causal: bool = False
) -> Pattern | HeadPatterns:
    """Every query sees a window, and the tokens at the strongest joints of the text.

    ::

        {(i, j) : |i + n_k - n_q - j| <= window  or  j in L}
        L = the `budget` keys with the largest strength above 0

    Parameters
    ----------
    q : array (..., heads, n_q, d) or (n_q, d)
    k : array (..., kv_heads, n_k, d) or (n_k, d)
        As :func:`numba_sparse_attn.sparse_attention` takes them, in host or GPU memory. Only shapes count.
    budget : int or sequence of int
        Landmarks; one number, or one for every query head.
    strength : array (n_k,) or (heads, n_k)
        How much of a joint each token is: 0 for none, say 1 for the end of a sentence, 2 for that of a
        paragraph, 3 for a heading.
    window : int
        Keys seen on each side besides the query's own place.
    causal : bool
        Only keys ``j <= i + n_k - n_q`` may be seen.

    Returns
    -------
    Pattern or HeadPatterns
        A pattern for ``(n, d)`` arrays, else one for every head of every batch element; one piece for the
        window, one a run of neighboring landmarks.

    Notes
    -----
    Pairs: at most ``n_q * (2 * window + 1 + budget)``.

    Cost: O(n_k) time to select.

    Use: where a text says itself where its parts end; tokens there gather what came before them.

    Avoid: without marks; :func:`landmarks_by_importance` and :func:`landmarks_by_clustering` find some.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.zeros((5, 4))
    >>> nsa.dynamic.landmarks_by_structure(q, k, 1, [0, 1, 0, 2, 0], 0).toarray().astype(int)
    array([[1, 0, 0, 1, 0],
           [0, 1, 0, 1, 0],
           [0, 0, 1, 1, 0],
           [0, 0, 0, 1, 0],
           [0, 0, 0, 1, 1]])
    """
    call = Call.of(q, k, causal, on_device=True)
    budgets = call.per_head("budget", budget)
    window = check_int("window", window)
    marks = call.head_arrays("strength", strength, (call.n_k,))
    name = named(landmarks_by_structure, budget=budget, strength=strength, window=window, causal=causal)
    most = np.minimum(np.count_nonzero(marks > 0, axis=1), budgets)
    chosen = largest(marks, np.full(call.heads, call.n_k, np.int64), most)

    def select(batch: int, head: int) -> Pattern:
        mine = chosen[head, : most[head]].astype(np.int64)
        return landmark_pattern(call, mine, window, name)

    return call.stack(select)
