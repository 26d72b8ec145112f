"""A window and the keys that receive the most attention."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import check_scale
from ..formats.limits import limits_of
from ..patterns._arguments import check_int, title
from ..patterns.heads import HeadPatterns
from ..patterns.pattern import Pattern
from . import _dense
from ._call import Call
from ._landmarks import dense_landmarks, landmark_pattern
from .catalogue import Array, Case, Mask, by_head, entry

__all__ = ["landmarks_by_importance"]


def _definition(
    q: Array,
    k: Array,
    budget: int,
    window: int,
    last: int | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Mask:
    scores = q @ k.T * (q.shape[1] ** -0.5 if scale is None else scale)
    weights = _dense.probabilities(scores, _dense.seen(len(q), len(k), causal))
    received = weights[0 if last is None else max(0, len(q) - last) :].sum(axis=0)
    chosen = np.argsort(-received, kind="stable")[:budget]
    return dense_landmarks(len(q), len(k), chosen, window, causal)


@entry(
    examples=lambda: [
        Case(48, 48, {"budget": 5, "window": 3, "causal": True}),
        Case(33, 70, {"budget": [0, 3, 9, 80], "window": 2, "last": 8}, heads=4, kv_heads=2),
        Case(40, 25, {"budget": 2, "window": 0, "causal": True, "scale": 1.0}),
        Case(5, 0, {"budget": 1, "window": 1}),
    ],
    dense=by_head(_definition, "budget"),
    scaled=lambda length: Case(
        length, length, {"budget": 64, "window": 64, "last": 64, "causal": True}, head_dim=64
    ),
)
def landmarks_by_importance(
    q: Any,
    k: Any,
    budget: Any,
    window: int,
    *,
    last: int | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Pattern | HeadPatterns:
    """Every query sees a window, and the keys that queries attend to most, all in all.

    ::

        {(i, j) : |i + n_k - n_q - j| <= window  or  j in L}
        L = the `budget` keys with the largest sum over i of p(i, j)

    with p the attention weights over all keys that i may see.

    Parameters
    ----------
    q : array (..., heads, n_q, d) or (n_q, d)
    k : array (..., kv_heads, n_k, d) or (n_k, d)
        As :func:`numba_sparse_attn.sparse_attention` takes them, in host or GPU memory.
    budget : int or sequence of int
        Landmarks; one number, or one for every query head.
    window : int
        Keys seen on each side besides the query's own place.
    last : int, optional
        Only the last queries judge, as many as this; all of them if not given.
    causal : bool
        Only keys ``j <= i + n_k - n_q`` may be seen.
    scale : float, optional
        Factor on q k^T; ``1 / sqrt(d)`` if not given.

    Returns
    -------
    Pattern or HeadPatterns
        A pattern for ``(n, d)`` arrays, else one for every head of every batch element; one piece for the
        window, one a run of neighboring landmarks.

    Notes
    -----
    Pairs: at most ``n_q * (2 * window + 1 + budget)``.

    Cost: O(n_q * n_k * d) time to select, O(last * n_k * d) where only the last queries judge.

    Use: to keep a cache small: heavy hitters (H2O, 2023) judge by all queries, SnapKV (2024) by the last.

    Avoid: causal by all queries, if early keys must not win by having been seen for longer: what is summed
    is weight received, and later keys have fewer queries to receive it from.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q, k = np.ones((4, 1)), np.array([[0.0], [5.0], [0.0], [1.0]])
    >>> nsa.dynamic.landmarks_by_importance(q, k, 1, 0).toarray().astype(int)
    array([[1, 1, 0, 0],
           [0, 1, 0, 0],
           [0, 1, 1, 0],
           [0, 1, 0, 1]])
    """
    call = Call.of(q, k, causal, on_device=True)
    budgets = call.per_head("budget", budget)
    window = check_int("window", window)
    first = 0 if last is None else max(0, call.n_q - check_int("last", last, low=1))
    factor = check_scale(scale, call.sizes.head_dim)
    name = title(landmarks_by_importance, budget=budget, window=window, last=last, causal=causal, scale=scale)
    seen = limits_of(call.n_q, call.n_k, causal=call.causal)
    tables = call.tools.best_received(first, seen, factor, budgets)

    def select(batch: int, head: int) -> Pattern:
        chosen = tables[batch * call.heads + head]
        return landmark_pattern(call, chosen[chosen >= 0].astype(np.int64), window, name)

    return call.stack(select)
