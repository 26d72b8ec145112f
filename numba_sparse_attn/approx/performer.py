"""Performer: positive random features of queries and keys whose products stand for exponentials of scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, ShapeError
from ._arrays import (
    check_shapes,
    group_queries,
    library_of,
    narrow,
    scale_of,
    smallest_normal,
    widen,
)

__all__ = ["Features", "performer", "performer_vjp"]

#: Rows of a causal sum that are computed as a matrix product at a time.
_CHUNK = 128


@dataclass(frozen=True)
class Features:
    """Random directions for :func:`performer`.

    Attributes
    ----------
    directions : float32 (count, head_dim)
    seed : int
        Of this draw.
    orthogonal : bool
        Whether directions of one block of `head_dim` are at right angles, which lowers the variance.
    """

    directions: npt.NDArray[np.float32]
    seed: int
    orthogonal: bool

    @classmethod
    def draw(cls, head_dim: int, count: int, *, seed: int = 0, orthogonal: bool = True) -> Features:
        """Directions that are normal one by one, and orthogonal in blocks.

        Examples
        --------
        >>> features = Features.draw(64, 256)
        >>> features.directions.shape
        (256, 64)
        >>> block = features.directions[:64] @ features.directions[:64].T
        >>> bool(abs(block[~np.eye(64, dtype=bool)]).max() < 1e-4)
        True
        """
        if head_dim < 1 or count < 1:
            raise ArgumentError(
                f"{count} features of {head_dim} elements", "at least 1 of each", "ask for more"
            )
        generator = np.random.default_rng(seed)
        if not orthogonal:
            return cls(generator.standard_normal((count, head_dim)).astype(np.float32), seed, False)
        blocks = []
        for _ in range(-(-count // head_dim)):
            rotation, triangle = np.linalg.qr(generator.standard_normal((head_dim, head_dim)))
            # With the signs of the diagonal, rotations are drawn evenly; lengths are those of normal vectors.
            lengths = np.linalg.norm(generator.standard_normal((head_dim, head_dim)), axis=1)
            blocks.append((rotation * np.sign(np.diag(triangle))).T * lengths[:, None])
        return cls(np.concatenate(blocks)[:count].astype(np.float32), seed, True)

    def redraw(self) -> Features:
        """As many new directions, from the next seed: training draws anew every so many steps.

        Examples
        --------
        >>> first = Features.draw(8, 16)
        >>> bool((first.redraw().directions != first.directions).all())
        True
        """
        count, head_dim = self.directions.shape
        drawn = Features.draw(head_dim, count, seed=self.seed + 1, orthogonal=self.orthogonal)
        return replace(self, directions=drawn.directions, seed=drawn.seed)


def performer(
    q: Any, k: Any, v: Any, features: Features, *, causal: bool = False, scale: float | None = None
) -> Any:
    """Attention with ``exp(scale * q . k)`` replaced by ``phi(q) . phi(k)``: linear in the length.

    ``phi(x) = exp(w . x' - |x'|^2 / 2) / sqrt(m)`` for each of m random directions w, with
    ``x' = sqrt(scale) x``. All features are positive, and the mean of their product over normal directions is
    the exponential.

    Parameters
    ----------
    q : array (..., heads, n_q, d)
    k : array (..., kv_heads, n_k, d)
    v : array (..., kv_heads, n_k, d_v)
        Of NumPy, CuPy, PyTorch or JAX.
    features : Features
    causal : bool
        Whether query i sees keys ``j <= i + n_k - n_q`` only: sums over keys become running sums.
    scale : float, optional
        ``1 / sqrt(d)`` if not given.

    Returns
    -------
    array (..., heads, n_q, d_v)
        A query without keys gets zeros, and so does one whose products with all keys are too small for a
        floating-point number.

    Examples
    --------
    >>> import numpy as np
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 512, 32)).astype(np.float32)
    >>> performer(q, k, v, Features.draw(32, 128), causal=True).shape
    (2, 512, 32)
    """
    return _forward(q, k, v, features, causal, scale).out


def performer_vjp(
    q: Any, k: Any, v: Any, features: Features, *, causal: bool = False, scale: float | None = None
) -> tuple[Any, Callable[[Any], tuple[Any, Any, Any]]]:
    """:func:`performer` and its pullback: from dout to (dq, dk, dv); directions are constants.

    Examples
    --------
    >>> import numpy as np
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 64, 16)).astype(np.float32)
    >>> out, pullback = performer_vjp(q, k, v, Features.draw(16, 32))
    >>> [gradient.shape for gradient in pullback(np.ones_like(out))]
    [(2, 64, 16), (2, 64, 16), (2, 64, 16)]
    """
    done = _forward(q, k, v, features, causal, scale)

    def pullback(dout: Any) -> tuple[Any, Any, Any]:
        library = library_of(q)
        *_, wide = widen(q, k, v, dout)
        grouped = group_queries(wide, k.shape[-3])
        # out = sums / weight: the gradient of both, side by side as they were summed.
        dsums = grouped * done.inverse
        dweight = -library.sum(dsums * done.ratio, axis=-1, keepdims=True)
        joined = library.concatenate([dsums, dweight], axis=-1)
        backward = _causal_backward if causal else _full_backward
        dqueries, dkeys, dvalues = backward(library, joined, done.queries, done.keys, done.values)
        q_root, k_root = done.roots
        dq = _through_features(library, dqueries, done.queries, done.small_q, done.directions) * q_root
        dk = _through_features(library, dkeys, done.keys, done.small_k, done.directions) * k_root
        return (
            narrow(dq.reshape(q.shape), q),
            narrow(dk.reshape(k.shape), k),
            narrow(dvalues[..., :-1].reshape(v.shape), v),
        )

    return done.out, pullback


@dataclass(frozen=True, eq=False)
class _Forward:
    """What a pullback needs: features, inputs as they went into them, results before they were rounded."""

    out: Any
    ratio: Any
    inverse: Any
    queries: Any
    keys: Any
    values: Any
    small_q: Any
    small_k: Any
    directions: Any
    roots: tuple[float, float]


def _forward(q: Any, k: Any, v: Any, features: Features, causal: bool, scale: float | None) -> _Forward:
    check_shapes(q, k, v)
    if features.directions.shape[1] != q.shape[-1]:
        raise ShapeError(
            f"features of {features.directions.shape[1]} elements for head dimension {q.shape[-1]}",
            "features drawn for the head dimension",
            f"draw them by Features.draw({q.shape[-1]}, count)",
        )
    library, kv_heads = library_of(q), k.shape[-3]
    factor = scale_of(scale, q.shape[-1])
    q_root = math.sqrt(abs(factor))
    k_root = math.copysign(q_root, factor)
    wide_q, wide_k, wide_v = widen(q, k, v)
    directions = _as_library(library, features.directions, wide_q)
    small_q = group_queries(wide_q, kv_heads) * q_root
    small_k = wide_k[..., None, :, :] * k_root
    # A shift of a query's exponents cancels in its result, one of all keys' in everybody's.
    queries = _features_of(library, small_q, directions, (-1,))
    keys = _features_of(library, small_k, directions, (-1, -2))
    values = wide_v[..., None, :, :]
    values = library.concatenate([values, library.ones_like(values[..., :1])], axis=-1)
    if causal:
        sums = _causal_sums(library, queries, keys, values)
    else:
        sums = queries @ (library.swapaxes(keys, -1, -2) @ values)
    weight = sums[..., -1:]
    some = weight > smallest_normal(weight)  # the inverse of what is smaller overflows
    inverse = library.where(some, 1.0 / library.where(some, weight, weight * 0.0 + 1.0), weight * 0.0)
    ratio = sums[..., :-1] * inverse
    out = narrow(ratio.reshape((*q.shape[:-1], v.shape[-1])), q)
    return _Forward(
        out, ratio, inverse, queries, keys, values, small_q, small_k, directions, (q_root, k_root)
    )


def _as_library(library: Any, array: npt.NDArray[np.float32], like: Any) -> Any:
    """A NumPy array as one of a library, of the type and in the place of another."""
    if library.__name__ == "torch":
        return library.as_tensor(array, dtype=like.dtype, device=like.device)
    return library.asarray(array, dtype=like.dtype)


def _features_of(library: Any, small: Any, directions: Any, shared: tuple[int, ...]) -> Any:
    """phi of rows, up to a factor that is the same along the axes `shared`."""
    exponents = small @ library.swapaxes(directions, 0, 1)
    exponents = exponents - library.sum(small * small, axis=-1, keepdims=True) / 2
    largest = exponents
    if exponents.shape[-2]:
        for axis in shared:
            largest = library.amax(largest, axis=axis, keepdims=True)
    return library.exp(exponents - largest)


def _through_features(library: Any, gradient: Any, features: Any, small: Any, directions: Any) -> Any:
    """From the gradient of features to that of the rows that they are of."""
    weighted = gradient * features
    return weighted @ directions - library.sum(weighted, axis=-1, keepdims=True) * small


def _full_backward(library: Any, dsums: Any, queries: Any, keys: Any, values: Any) -> tuple[Any, Any, Any]:
    state = library.swapaxes(keys, -1, -2) @ values
    dqueries = dsums @ library.swapaxes(state, -1, -2)
    dstate = library.swapaxes(queries, -1, -2) @ dsums
    dstate = library.sum(dstate, axis=-3, keepdims=True)  # over the queries that share the keys
    return dqueries, values @ library.swapaxes(dstate, -1, -2), keys @ dstate


class _Chunks:
    """Pieces of a causal sum: queries `rows` see all keys before `columns`, and of these a triangle.

    Query i sees keys up to ``i + offset``. Queries before the first key see none.
    """

    def __init__(self, n_q: int, n_k: int) -> None:
        self.offset = n_k - n_q
        first = max(0, -self.offset)
        starts = range(first, n_q, _CHUNK)
        self.rows = [slice(begin, min(begin + _CHUNK, n_q)) for begin in starts]
        self.columns = [slice(part.start + self.offset, part.stop + self.offset) for part in self.rows]
        self.empty = slice(0, first)
        #: Keys that every query sees.
        self.prefix = slice(0, max(0, self.offset))


def _causal_sums(library: Any, queries: Any, keys: Any, values: Any) -> Any:
    chunks = _Chunks(queries.shape[-2], keys.shape[-2])
    turned = library.swapaxes(keys, -1, -2)
    state = turned[..., chunks.prefix] @ values[..., chunks.prefix, :]
    parts = [queries[..., chunks.empty, :] @ (state * 0.0)]
    for rows, columns in zip(chunks.rows, chunks.columns, strict=True):
        mine, theirs = queries[..., rows, :], values[..., columns, :]
        within = library.tril(mine @ turned[..., columns])
        parts.append(mine @ state + within @ theirs)
        state = state + turned[..., columns] @ theirs
    return library.concatenate(parts, axis=-2)


def _causal_backward(library: Any, dsums: Any, queries: Any, keys: Any, values: Any) -> tuple[Any, Any, Any]:
    chunks = _Chunks(queries.shape[-2], keys.shape[-2])

    def turned(array: Any) -> Any:
        return library.swapaxes(array, -1, -2)

    def over_group(array: Any) -> Any:
        return library.sum(array, axis=-3, keepdims=True)

    state = turned(keys[..., chunks.prefix, :]) @ values[..., chunks.prefix, :]
    dqueries = [queries[..., chunks.empty, :] * 0.0]
    for rows, columns in zip(chunks.rows, chunks.columns, strict=True):
        theirs = values[..., columns, :]
        within = library.tril(dsums[..., rows, :] @ turned(theirs))
        dqueries.append(dsums[..., rows, :] @ turned(state) + within @ keys[..., columns, :])
        state = state + turned(keys[..., columns, :]) @ theirs

    dstate = state * 0.0  # of all queries behind the chunk
    dkeys, dvalues = [], []
    for rows, columns in zip(reversed(chunks.rows), reversed(chunks.columns), strict=True):
        mine, theirs = queries[..., rows, :], values[..., columns, :]
        incoming = dsums[..., rows, :]
        slopes = library.tril(incoming @ turned(theirs))
        weights = library.tril(mine @ turned(keys[..., columns, :]))
        dkeys.append(theirs @ turned(dstate) + over_group(turned(slopes) @ mine))
        dvalues.append(keys[..., columns, :] @ dstate + over_group(turned(weights) @ incoming))
        dstate = dstate + over_group(turned(mine) @ incoming)
    dkeys.append(values[..., chunks.prefix, :] @ turned(dstate))
    dvalues.append(keys[..., chunks.prefix, :] @ dstate)
    return (
        library.concatenate(dqueries, axis=-2),
        library.concatenate(dkeys[::-1], axis=-2),
        library.concatenate(dvalues[::-1], axis=-2),
    )
