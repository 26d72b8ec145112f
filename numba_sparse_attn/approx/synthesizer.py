"""Synthesizer: weights that no product of queries and keys has made. Time and memory are O(n^2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..errors import ShapeError
from ._arrays import library_of, narrow, summed_to, widen

__all__ = ["dense_scores", "factorized_scores", "synthesizer", "synthesizer_vjp"]

#: From the gradient of a result to those of the arrays that it was made from, in their order.
Pullback = Callable[[Any], tuple[Any, ...]]


def dense_scores(x: Any, inner: Any, inner_bias: Any, outer: Any, outer_bias: Any) -> tuple[Any, Pullback]:
    """The *dense* synthesizer: a token's scores for all places, by a network of two layers.

    ``relu(x inner + inner_bias) outer + outer_bias``. With fewer columns in `outer` it is the *factorised*
    dense one: see :func:`factorized_scores`.

    Parameters
    ----------
    x : array (..., heads, n, d)
    inner : array (heads, d, width)
    inner_bias : array (heads, 1, width)
    outer : array (heads, width, places)
    outer_bias : array (heads, 1, places)

    Returns
    -------
    scores : array (..., heads, n, places)
    pullback : function
        From dscores to the gradients of the five arguments.

    Examples
    --------
    >>> import numpy as np
    >>> draw = np.random.default_rng(0).standard_normal
    >>> x, inner, outer = draw((2, 8, 16)), draw((2, 16, 4)), draw((2, 4, 8))
    >>> scores, pullback = dense_scores(x, inner, np.zeros((2, 1, 4)), outer, np.zeros((2, 1, 8)))
    >>> scores.shape, [gradient.shape for gradient in pullback(np.ones_like(scores))]
    ((2, 8, 8), [(2, 8, 16), (2, 16, 4), (2, 1, 4), (2, 4, 8), (2, 1, 8)])
    """
    given = x, inner, inner_bias, outer, outer_bias
    wide_x, wide_inner, wide_inner_bias, wide_outer, wide_outer_bias = widen(*given)
    library = library_of(x)
    before = wide_x @ wide_inner + wide_inner_bias
    hidden = before * (before > 0)
    scores = narrow(hidden @ wide_outer + wide_outer_bias, x)

    def pullback(dscores: Any) -> tuple[Any, ...]:
        (wide,) = widen(dscores)
        dhidden = (wide @ library.swapaxes(wide_outer, -1, -2)) * (before > 0)
        gradients = (
            dhidden @ library.swapaxes(wide_inner, -1, -2),
            library.swapaxes(wide_x, -1, -2) @ dhidden,
            library.sum(dhidden, axis=-2, keepdims=True),
            library.swapaxes(hidden, -1, -2) @ wide,
            library.sum(wide, axis=-2, keepdims=True),
        )
        return tuple(
            narrow(summed_to(gradient, tuple(array.shape)), array)
            for gradient, array in zip(gradients, given, strict=True)
        )

    return scores, pullback


def factorized_scores(left: Any, right: Any, *, outer: bool = False) -> tuple[Any, Pullback]:
    """Scores of two small factors, and their pullback.

    Parameters
    ----------
    left : array (..., heads, n, rank), or (..., heads, n, a)
    right : array (..., heads, places, rank), or (..., heads, n, b)
    outer : bool
        False: ``left right^T``, the *factorised random* synthesizer. True: every token's a numbers times
        its b numbers, ``a * b`` places, the *factorised dense* one; both come from :func:`dense_scores`.

    Returns
    -------
    scores : array (..., heads, n, places)
    pullback : function
        From dscores to (dleft, dright).

    Examples
    --------
    >>> import numpy as np
    >>> left, right = np.ones((2, 6, 2)), np.arange(36.0).reshape(2, 6, 3)
    >>> scores, _ = factorized_scores(left, right, outer=True)
    >>> scores[0, 0].tolist()
    [0.0, 1.0, 2.0, 0.0, 1.0, 2.0]
    """
    wide_left, wide_right = widen(left, right)
    library = library_of(left)
    if outer:
        product = wide_left[..., :, None] * wide_right[..., None, :]
        scores = product.reshape((*product.shape[:-2], -1))
    else:
        scores = wide_left @ library.swapaxes(wide_right, -1, -2)

    def pullback(dscores: Any) -> tuple[Any, ...]:
        (wide,) = widen(dscores)
        if outer:
            square = wide.reshape((*wide.shape[:-1], left.shape[-1], right.shape[-1]))
            gradients = (
                library.sum(square * wide_right[..., None, :], axis=-1),
                library.sum(square * wide_left[..., :, None], axis=-2),
            )
        else:
            gradients = wide @ wide_right, library.swapaxes(wide, -1, -2) @ wide_left
        return tuple(
            narrow(summed_to(gradient, tuple(array.shape)), array)
            for gradient, array in zip(gradients, (left, right), strict=True)
        )

    return narrow(scores, left), pullback


def synthesizer(scores: Any, v: Any, *, causal: bool = False) -> Any:
    """``softmax(scores) v`` for scores that are learned or made from tokens one by one.

    Parameters
    ----------
    scores : array (heads, n_q, n_k) or (..., heads, n_q, n_k)
        A parameter (the *random* synthesizer), or from :func:`dense_scores` or :func:`factorized_scores`.
        Made for longer sequences, it may have more rows and columns: the first are taken.
    v : array (..., kv_heads, n_k, d_v)
        Of NumPy, CuPy, PyTorch or JAX.
    causal : bool
        Whether query i sees places ``j <= i`` only.

    Returns
    -------
    array (..., heads, n_q, d_v)
        As many queries as there are values.

    Examples
    --------
    >>> import numpy as np
    >>> v = np.eye(4, dtype=np.float32)[None]
    >>> synthesizer(np.zeros((1, 8, 8), np.float32), v, causal=True)[0, 1].tolist()
    [0.5, 0.5, 0.0, 0.0]
    """
    return synthesizer_vjp(scores, v, causal=causal)[0]


def synthesizer_vjp(scores: Any, v: Any, *, causal: bool = False) -> tuple[Any, Pullback]:
    """:func:`synthesizer` and its pullback: from dout to (dscores, dv).

    Examples
    --------
    >>> import numpy as np
    >>> out, pullback = synthesizer_vjp(np.zeros((2, 4, 4)), np.ones((2, 4, 3)))
    >>> [gradient.shape for gradient in pullback(np.ones_like(out))]
    [(2, 4, 4), (2, 4, 3)]
    """
    n = _check(scores, v)
    library = library_of(scores)
    wide_scores, wide_v = widen(scores, v)
    group = scores.shape[-3] // v.shape[-3]
    values = wide_v[..., :, None, :, :]
    shape = (*scores.shape[:-3], v.shape[-3], group, n, n)
    used = wide_scores[..., :n, :n].reshape(shape)
    if causal:
        hidden = library.triu(library.ones_like(used), 1) > 0
        used = library.where(hidden, used * 0.0 - math.inf, used)
    weights = library.exp(used - (library.amax(used, axis=-1, keepdims=True) if n else 0.0))
    weights = weights / library.sum(weights, axis=-1, keepdims=True)
    wide_out = weights @ values
    lead = tuple(wide_out.shape[:-4])
    out = narrow(wide_out.reshape((*lead, scores.shape[-3], n, v.shape[-1])), v)

    def pullback(dout: Any) -> tuple[Any, ...]:
        (wide,) = widen(dout)
        incoming = wide.reshape(tuple(wide_out.shape))
        delta = library.sum(incoming * wide_out, axis=-1, keepdims=True)
        slopes = weights * (incoming @ library.swapaxes(values, -1, -2) - delta)
        dused = summed_to(slopes, tuple(used.shape)).reshape((*scores.shape[:-2], n, n))
        dscores = _padded(library, dused, tuple(scores.shape))
        dvalues = library.sum(library.swapaxes(weights, -1, -2) @ incoming, axis=-3)
        return narrow(dscores, scores), narrow(summed_to(dvalues, tuple(v.shape)), v)

    return out, pullback


def _check(scores: Any, v: Any) -> int:
    given = f"scores {tuple(scores.shape)} and v {tuple(v.shape)}"
    fits = len(scores.shape) >= 3 and len(v.shape) >= 3 and v.shape[-3] and not scores.shape[-3] % v.shape[-3]
    if not fits or min(scores.shape[-2:]) < v.shape[-2]:
        raise ShapeError(
            given,
            "(..., heads, rows, places) and (..., kv_heads, n, d_v) with at least n rows and places",
            "make scores for the longest sequence",
        )
    lead, ours = tuple(v.shape[:-3]), tuple(scores.shape[:-3])
    if ours not in ((), lead):
        raise ShapeError(given, "the same leading axes, or none for scores", "reshape one of them")
    return int(v.shape[-2])


def _padded(library: Any, square: Any, shape: tuple[int, ...]) -> Any:
    """Zeros for the rows and places that were not used."""
    for axis in (-2, -1):
        missing = shape[axis] - square.shape[axis]
        if missing:
            room = list(square.shape)
            room[axis] = missing
            zeros = library.zeros_like(library.broadcast_to(library.sum(square) * 0, tuple(room)))
            square = library.concatenate([square, zeros], axis=axis)
    return square
