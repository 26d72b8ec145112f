"""The oracle: sparse attention by the book, dense, in float64, with NumPy alone.

Nothing else of the package is imported here, so no error can be shared with what is judged by it.
It is written to be read and believed; it is slow. Scores are formed for a block of query rows at a
time, so a few thousand tokens need megabytes and not a square array per head.

What it defines, beyond the textbook formula:

- A pair that is not selected never enters a sum, not even multiplied by zero. NaN and infinity in
  a query, key, value or incoming gradient reach only what a selected pair carries them to.
- In selected pairs NaN and infinity do what they do in ``exp(s) / sum(exp(s))`` written with the
  row maximum subtracted: a NaN score, an infinite maximum, or 0 * inf gives NaN.
- A row without keys has output 0, lse -inf and gradient 0. A key without queries has gradient 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["DenseChange", "Rule", "backward", "backward_of_changes", "forward"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: Scores held at a time: 32 MB in float64.
_BLOCK_ELEMENTS = 1 << 22


class DenseChange(Protocol):
    """A change of scores on the way to the softmax, for a block of rows of one head; see reference_scores."""

    def apply(self, scores: Any, item: int, head: int, rows: slice) -> tuple[Any, Any]:
        """Changed scores, and their derivatives with respect to the scores."""

    def add_gradient(self, dscores: Array, item: int, head: int, rows: slice, total: Array) -> None:
        """Add what follows for the parameters from the gradients of the changed scores."""

    def zeros(self) -> Array:
        """A gradient to begin with."""


class Rule(Protocol):
    """How the scores of a query head become weights, and how gradients come back; rows stand side by side.

    Attributes
    ----------
    sparse : bool
        Whether a pair with weight 0 is as if it was not selected. Weights of softmax are 0 by rounding only.
    """

    sparse: bool

    def weights(self, scores: Array, seen: Mask, head: int) -> tuple[Array, Array]:
        """Weights, exactly zero outside of `seen`, and the number of every row that is returned as lse."""

    def weight(self, distance: Array, head: int) -> Array:
        """Weights once more, from score - lse alone."""

    def slopes(self, weights: Array, head: int) -> Array:
        """Derivatives of weights with respect to their own scores, at a fixed lse; 0 where a weight is 0."""

    def delta(self, slopes: Array, dweights: Array) -> Array:
        """What each row's incoming gradients are taken relative to, (rows, 1)."""

    def of_parameter(self, weights: Array, dweights: Array, head: int) -> float:
        """Gradient with respect to the head's parameter; 0 where there is none."""


class _Softmax:
    """exp(score) over the sum of them, to which a sink adds the exponential of its own score."""

    sparse = False

    def __init__(self, sink: npt.ArrayLike | None = None) -> None:
        self._sink = None if sink is None else np.asarray(sink, np.float64)

    def sink_of(self, head: int) -> float:
        """The score of a head's sink; -inf where there is none."""
        return -np.inf if self._sink is None else float(self._sink[head])

    def weights(self, scores: Array, seen: Mask, head: int) -> tuple[Array, Array]:
        sink = self.sink_of(head)
        peak = np.max(scores, axis=1, keepdims=True, initial=sink, where=seen)
        peak = np.where(seen.any(axis=1, keepdims=True) | (sink > -np.inf), peak, 0.0)
        weights = np.where(seen, np.exp(scores - peak), 0.0)
        total = weights.sum(axis=1, keepdims=True) + np.exp(sink - peak)
        return np.where(seen, weights / total, 0.0), (peak + np.log(total))[:, 0]

    def weight(self, distance: Array, head: int) -> Array:
        return np.asarray(np.exp(distance))

    def slopes(self, weights: Array, head: int) -> Array:
        return weights

    def delta(self, slopes: Array, dweights: Array) -> Array:
        return np.asarray(np.sum(slopes * dweights, axis=1, keepdims=True))

    def of_parameter(self, weights: Array, dweights: Array, head: int) -> float:
        return 0.0


SOFTMAX = _Softmax()


def forward(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    mask: npt.ArrayLike,
    scale: float,
    *,
    changes: Sequence[DenseChange] = (),
    sink: npt.ArrayLike | None = None,
    rule: Rule = SOFTMAX,
) -> tuple[Array, Array]:
    """Attention over the selected pairs.

    Parameters
    ----------
    q : (..., heads, n_q, d)
    k : (..., kv_heads, n_k, d)
    v : (..., kv_heads, n_k, d_v)
        Any float dtype; computed in float64. ``heads`` is a multiple of ``kv_heads``. All three may
        be without the axes before ``n``: one head.
    mask : bool, broadcastable to (..., heads, n_q, n_k)
        True where the query sees the key.
    scale : float
        Factor on ``q @ k.T``.
    changes : sequence of DenseChange
        What the scaled scores go through, one after the other.
    sink : (heads,), optional
        The score of a key without value that every query of a head sees; for softmax.
    rule : Rule
        Softmax, or another one from :mod:`numba_sparse_attn.reference_normalisers`.

    Returns
    -------
    out : float64 (..., heads, n_q, d_v)
    lse : float64 (..., heads, n_q)
        Natural logarithm of the sum of exp(score) over the selected keys, or what the rule has in its place.

    Examples
    --------
    >>> import numpy as np
    >>> q, k = np.zeros((2, 4)), np.zeros((3, 4))
    >>> v = np.array([[1.0], [2.0], [6.0]])
    >>> out, lse = forward(q, k, v, [[True, False, True], [False, False, False]], scale=0.5)
    >>> out[:, 0].tolist(), lse.round(6).tolist()
    ([3.5, 0.0], [0.693147, -inf])
    """
    (q, k, v), selected, lead = _prepare((q, k, v), mask)
    batch, heads, n_q, _ = q.shape
    group = heads // k.shape[1]
    out = np.zeros((batch, heads, n_q, v.shape[3]))
    lse = np.full((batch, heads, n_q), -np.inf)
    rule = rule if sink is None else _Softmax(sink)
    with np.errstate(all="ignore"):
        for item, head, rows in _row_blocks(batch, heads, n_q, k.shape[2]):
            keys, values = k[item, head // group], v[item, head // group]
            seen = selected[item, head, rows]
            scores, _ = _changed(scale * (q[item, head, rows] @ keys.T), changes, item, head, rows)
            weights, log_total = rule.weights(np.where(seen, scores, -np.inf), seen, head)
            pairs = seen & (weights != 0.0) if rule.sparse else seen
            out[item, head, rows] = _product(weights, pairs, values)
            lse[item, head, rows] = log_total
    return out.reshape(*lead, n_q, v.shape[3]), lse.reshape(*lead, n_q)


def backward(
    dout: npt.ArrayLike,
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    mask: npt.ArrayLike,
    scale: float,
    *,
    rule: Rule = SOFTMAX,
    dparameter: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Gradients of ``sum(dout * out)`` with respect to q, k and v, from their formulas.

    With P the weights, ``dV = P.T @ dout``, ``dP = dout @ V.T`` and, for softmax,
    ``dS = P * (dP - rowsum(P * dP))``; then ``dQ = scale * dS @ K`` and ``dK = scale * dS.T @ Q``.

    Parameters
    ----------
    dout : (..., heads, n_q, d_v)
    q, k, v, mask, scale, rule
        As in :func:`forward`.
    dparameter : float64 (heads,), optional
        Where the gradient of the rule's parameter is added up, head by head.

    Returns
    -------
    dq, dk, dv : float64
        Shaped like q, k and v. Query heads that share a key head add up in dk and dv.

    Examples
    --------
    >>> import numpy as np
    >>> q, k = np.zeros((1, 1)), np.array([[1.0], [2.0], [4.0]])
    >>> v = np.array([[1.0], [2.0], [6.0]])
    >>> dq, dk, dv = backward(np.ones((1, 1)), q, k, v, [[True, False, True]], scale=1.0)
    >>> dq.tolist(), dk[:, 0].tolist(), dv[:, 0].tolist()
    ([[3.75]], [0.0, 0.0, 0.0], [0.5, 0.0, 0.5])
    """
    return backward_of_changes(dout, q, k, v, mask, scale, rule=rule, dparameter=dparameter)[:3]


def backward_of_changes(
    dout: npt.ArrayLike,
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    mask: npt.ArrayLike,
    scale: float,
    *,
    changes: Sequence[DenseChange] = (),
    sink: npt.ArrayLike | None = None,
    rule: Rule = SOFTMAX,
    dparameter: Array | None = None,
) -> tuple[Array, Array, Array, list[Array], Array]:
    """Gradients as of :func:`backward`, and those of the changes' parameters and of the sink.

    The gradient of a changed score goes back through the changes in reverse, times the derivative of each.
    A sink with weight w has the gradient ``w * (0 - rowsum(P * dP))`` from every row, since its value is 0.

    Parameters
    ----------
    dout, q, k, v, mask, scale
        As in :func:`backward`.
    changes, sink
        As in :func:`forward`.
    rule, dparameter
        As in :func:`backward`.

    Returns
    -------
    dq, dk, dv : float64
    dchanges : list of float64 arrays
        One a change.
    dsink : float64 (heads,)

    Examples
    --------
    >>> import numpy as np
    >>> one, v = np.zeros((1, 1)), np.array([[1.0]])
    >>> *_, dsink = backward_of_changes(one + 1, one, one, v, [[True]], scale=1.0, sink=[0.0])
    >>> dsink.tolist()
    [-0.25]
    """
    (q, k, v, dout), selected, lead = _prepare((q, k, v, dout), mask)
    batch, heads, n_q, _ = q.shape
    group = heads // k.shape[1]
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    dchanges, dsink = [change.zeros() for change in changes], np.zeros(heads)
    softmax = _Softmax(sink)
    rule = rule if sink is None else softmax
    with np.errstate(all="ignore"):
        for item, head, rows in _row_blocks(batch, heads, n_q, k.shape[2]):
            shared = head // group
            queries, keys, values = q[item, head, rows], k[item, shared], v[item, shared]
            incoming, seen = dout[item, head, rows], selected[item, head, rows]
            scores, of_changes = _changed(scale * (queries @ keys.T), changes, item, head, rows)
            weights, log_total = rule.weights(np.where(seen, scores, -np.inf), seen, head)
            pairs = seen & (weights != 0.0) if rule.sparse else seen
            dweights = np.where(pairs, incoming @ values.T, 0.0)
            slopes = rule.slopes(weights, head)
            delta = rule.delta(slopes, dweights)
            dscores = np.where(pairs, slopes * (dweights - delta), 0.0)
            if dparameter is not None:
                dparameter[head] += rule.of_parameter(weights, dweights, head)
            if sink is not None:
                share = np.where(np.isneginf(log_total), 0.0, np.exp(softmax.sink_of(head) - log_total))
                dsink[head] -= np.sum(share * delta[:, 0])
            for number in reversed(range(len(changes))):
                changes[number].add_gradient(dscores, item, head, rows, dchanges[number])
                dscores = np.where(pairs, dscores * of_changes[number], 0.0)
            dq[item, head, rows] = scale * _product(dscores, pairs, keys)
            dk[item, shared] += scale * _product(dscores.T, pairs.T, queries)
            dv[item, shared] += _product(weights.T, pairs.T, incoming)
    kv_lead = (*lead[:-1], k.shape[1]) if lead else ()
    return (
        dq.reshape(*lead, *q.shape[2:]),
        dk.reshape(*kv_lead, *k.shape[2:]),
        dv.reshape(*kv_lead, *v.shape[2:]),
        dchanges,
        dsink,
    )


def _prepare(
    arrays: tuple[npt.ArrayLike, ...], mask: npt.ArrayLike
) -> tuple[list[Array], Mask, tuple[int, ...]]:
    """Arrays as float64 (batch, heads, n, d), the mask as (batch, heads, n_q, n_k), q's leading axes."""
    wide = [np.asarray(array).astype(np.float64) for array in arrays]
    q, k = wide[0], wide[1]
    lead = q.shape[:-2]
    if any(array.ndim != q.ndim or array.ndim < 2 for array in wide):
        raise ValueError(
            f"arrays of {[array.ndim for array in wide]} axes; all need the same number, at least 2"
        )
    if lead and (k.shape[-3] == 0 or lead[-1] % k.shape[-3]):
        raise ValueError(f"{lead[-1]} query heads are not a multiple of {k.shape[-3]} key heads")
    heads, kv_heads = (lead[-1], k.shape[-3]) if lead else (1, 1)
    batch = int(np.prod(lead[:-1], dtype=np.int64))
    flat = [
        array.reshape(batch, count, *array.shape[-2:])
        for array, count in zip(wide, (heads, kv_heads, kv_heads, heads), strict=False)
    ]
    selected = np.asarray(mask)
    if selected.dtype != np.bool_:
        raise ValueError(f"a mask of {selected.dtype}; it must be boolean")
    selected = np.broadcast_to(selected, (*lead, q.shape[-2], k.shape[-2]))
    return flat, selected.reshape(batch, heads, *selected.shape[-2:]), lead


def _row_blocks(batch: int, heads: int, n_q: int, n_k: int) -> list[tuple[int, int, slice]]:
    step = max(1, _BLOCK_ELEMENTS // max(1, n_k))
    blocks = [slice(begin, min(begin + step, n_q)) for begin in range(0, n_q, step)]
    return [(item, head, rows) for item in range(batch) for head in range(heads) for rows in blocks]


def _changed(
    scores: Array, changes: Sequence[DenseChange], item: int, head: int, rows: slice
) -> tuple[Array, list[Array]]:
    """Scores after all changes, and the derivative of every change at the scores that reach it."""
    slopes = []
    for change in changes:
        scores, slope = change.apply(scores, item, head, rows)
        slopes.append(slope)
    return scores, slopes


def _product(weights: Array, seen: Mask, values: Array) -> Array:
    """``weights @ values`` in which pairs outside of `seen` take no part, whatever `values` holds there.

    Rows of `values` that are not finite are left out of the matrix product, where a weight of zero
    would turn them into NaN for every row, and are added to the rows that see them.
    """
    tainted: Mask = np.any(~np.isfinite(values), axis=1)
    if not tainted.any():
        return weights @ values
    result: Array = np.where(tainted, 0.0, weights) @ np.where(tainted[:, None], 0.0, values)
    for index in np.flatnonzero(tainted & seen.any(axis=0)):
        rows = seen[:, index]
        result[rows] += weights[rows, index, None] * values[index]
    return result
