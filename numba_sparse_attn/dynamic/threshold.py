"""The keys whose weight, or score, is large enough."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import check_scale
from ..formats.csr import canonical
from ..patterns._arguments import check_choice, title
from ..patterns.heads import HeadPatterns
from ..patterns.pattern import Pattern
from . import _dense
from ._call import Call, Floats
from ._panels import for_each_panel, softmax_rows
from .catalogue import Array, Case, Mask, by_head, entry

__all__ = ["threshold"]


def _definition(
    q: Array, k: Array, bound: float, of: str = "weight", causal: bool = False, scale: float | None = None
) -> Mask:
    scores = (q @ k.T) * (q.shape[1] ** -0.5 if scale is None else scale)
    allowed = _dense.seen(len(q), len(k), causal)
    measured = _dense.probabilities(scores, allowed) if of == "weight" else scores
    return allowed & (measured >= bound)


@entry(
    examples=lambda: [
        Case(48, 48, {"bound": 0.05, "causal": True}),
        Case(33, 70, {"bound": [0.01, 0.1, 0.5, 2.0]}, heads=4, kv_heads=2),
        Case(40, 25, {"bound": 1.5, "of": "score", "causal": True, "scale": 0.3}),
        Case(5, 0, {"bound": 0.0}),
    ],
    dense=by_head(_definition, "bound"),
    scaled=lambda length: Case(length, length, {"bound": 0.01, "causal": True}, head_dim=64),
)
def threshold(
    q: Any, k: Any, bound: Any, *, of: str = "weight", causal: bool = False, scale: float | None = None
) -> Pattern | HeadPatterns:
    """Every query sees the keys whose attention weight, or score, is at least a bound.

    ::

        {(i, j) : w(i, j) >= bound}

    with w the softmax of ``scale * q k^T`` over the keys that i may see, or ``scale * q_i . k_j`` itself.

    Parameters
    ----------
    q : array (..., heads, n_q, d) or (n_q, d)
    k : array (..., kv_heads, n_k, d) or (n_k, d)
        As :func:`numba_sparse_attn.sparse_attention` takes them, in host memory.
    bound : float or sequence of float
        One number, or one for every query head.
    of : {"weight", "score"}
        What is compared with the bound.
    causal : bool
        Only keys ``j <= i + n_k - n_q`` may be seen.
    scale : float, optional
        Factor on q k^T; ``1 / sqrt(d)`` if not given.

    Returns
    -------
    Pattern or HeadPatterns
        A pattern for ``(n, d)`` arrays, else one for every head of every batch element.

    Notes
    -----
    Pairs: at most ``n_q / bound`` for weights; up to all for scores. A row may be empty.

    Cost: O(n_q * n_k * d) time to select, in products of a panel of queries with all keys; memory for the
    selected pairs.

    Use: where some queries look at one key and others at hundreds: each gets as many as it needs.

    Avoid: where every query must cost the same; that is :func:`top_k`.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    >>> nsa.dynamic.threshold(q, k, 0.3, scale=1.0).toarray().astype(int)
    array([[0, 0, 1],
           [0, 1, 0],
           [0, 0, 1]])
    """
    call = Call.of(q, k, causal)
    bounds = call.per_head_float("bound", bound)
    of = check_choice("of", of, ("weight", "score"))
    factor = check_scale(scale, int(call.q.shape[-1]))
    name = title(threshold, bound=bound, of=of, causal=causal, scale=scale)

    def select(batch: int, head: int) -> Pattern:
        found: dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = {}

        def work(rows: slice, scores: Floats) -> None:
            limits = call.visible[rows]
            scores *= factor
            if of == "weight":
                softmax_rows(scores, limits)
            passed = scores >= bounds[head]
            passed &= np.arange(scores.shape[1]) < limits[:, None]
            found[rows.start] = passed.sum(axis=1), np.nonzero(passed)[1]

        for_each_panel(call.queries(batch, head), call.keys(batch, head), call.visible, work)
        panels = [found[start] for start in sorted(found)]
        indptr = np.cumsum(np.concatenate([[0], *(counts for counts, _ in panels)]))
        keys = np.concatenate([np.zeros(0, np.int64), *(keys for _, keys in panels)])
        return Pattern.from_csr(canonical((call.n_q, call.n_k), indptr, keys), name=name)

    return call.stack(select)
