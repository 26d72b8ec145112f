"""How attention spreads over the keys: entropy, and the share that the strongest keys hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ._inputs import Call, Floats
from ._panels import weights_by_panel

__all__ = ["attention_entropy", "effective_attention"]


def attention_entropy(q: Any, k: Any, pattern: Any = None, *, scale: float | None = None) -> Floats:
    """Entropy of every query's weights, ``-sum_j p_j log p_j``, in nats.

    Zero where one key takes all, ``log(keys)`` where all keys weigh the same; ``exp`` of it is the number
    of keys that a query effectively attends to.

    Parameters
    ----------
    q, k
        As :func:`numba_sparse_attn.sparse_attention` takes them; computed in float64.
    pattern : optional
        Which query sees which key; all pairs if not given.
    scale : float, optional

    Returns
    -------
    float64 (..., heads, n_q)
        NaN for a query without keys.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.zeros((4, 8))
    >>> np.exp(nsa.analysis.attention_entropy(q, k, nsa.patterns.causal(4))).round(6).tolist()
    [1.0, 2.0, 3.0, 4.0]
    """
    call = Call.of(q, k, k, scale)
    return call.moments(call.pattern(pattern)).entropy


def effective_attention(
    q: Any,
    k: Any,
    pattern: Any = None,
    *,
    share: float | npt.ArrayLike = 0.1,
    scale: float | None = None,
) -> Floats:
    """Share of the weight that every query gives to its strongest keys.

    The strongest keys of a query with m keys are the ``ceil(share * m)`` that weigh most. Near one, a
    pattern that finds those keys loses little; equal to `share`, every key counts the same.

    Parameters
    ----------
    q, k, pattern, scale
        As in :func:`attention_entropy`.
    share : float or sequence of float
        In (0, 1].

    Returns
    -------
    float64 (..., heads, n_q), and a last axis as long as `share` if that is a sequence
        NaN for a query without keys.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q, k = np.ones((1, 1)), np.log([[6.0], [1.0], [2.0], [1.0]])
    >>> nsa.analysis.effective_attention(q, k, share=[0.25, 0.5], scale=1.0).round(6).tolist()
    [[0.6, 0.8]]
    """
    call = Call.of(q, k, k, scale)
    shares = np.asarray(share, np.float64)
    wrong = ~((shares > 0.0) & (shares <= 1.0))
    if shares.ndim > 1 or wrong.any():
        raise ArgumentError(f"share={share!r}", "numbers above 0 and up to 1", "pass 0.1 for a tenth")
    sizes = call.sizes
    held = np.full((sizes.batch, sizes.heads, sizes.n_q, shares.size), np.nan)
    for batch, head, panel, weights in weights_by_panel(call, call.pattern(pattern)):
        count = panel.seen.sum(axis=1)
        some = count > 0
        if not some.any():
            continue
        # A product like 0.1 * 30 may lie a rounding above the whole number that is meant.
        strongest = np.ceil(np.outer(count[some], shares) * (1 - 4e-16)).astype(np.int64)
        ranked = np.cumsum(np.sort(weights[some], axis=1)[:, ::-1], axis=1)
        held[batch, head, panel.rows][some] = np.take_along_axis(ranked, strongest - 1, axis=1)
    result = call.shaped(np.minimum(held, 1.0))
    return result if shares.ndim else result[..., 0]
