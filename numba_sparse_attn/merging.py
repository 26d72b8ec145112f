"""Results of several calls put together: attention over the union of their keys, with gradients.

Attention over keys A and B is a mean of attention over A and over B, whose weights follow from the two
logarithms of the sums of exp(score). That is how keys are split over calls, machines or caches. Branches
that a model weighs itself are added up with its gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import check_dtype, check_gradient, host_array
from .errors import ArgumentError, DtypeError, ShapeError

__all__ = ["gated_sum", "gated_sum_backward", "merge", "merge_backward"]

Array = npt.NDArray[Any]


def merge(outs: Sequence[Any], lses: Sequence[Any]) -> tuple[Array, Array]:
    """Attention over disjoint sets of keys, put together to attention over all of them.

    Parameters
    ----------
    outs : sequence of arrays (..., n_q, d_v), or one array with the parts along a leading axis
    lses : sequence of arrays (..., n_q), likewise
        What ``sparse_attention(..., return_lse=True)`` returned for every part.

    Returns
    -------
    out : array (..., n_q, d_v)
        In the type of `outs`.
    lse : array (..., n_q)
        In the type of `lses`: that of one call over all the keys.

    Notes
    -----
    A part with lse -inf has no keys and takes no part, whatever its `out` holds. Where no part has keys,
    `out` is 0 and `lse` -inf. A key that is in two parts counts twice.

    For gradients with respect to q, k and v nothing has to go back through the merge: give the *merged* out
    and lse to :func:`sparse_attention_backward` for every part. It forms the weights as exp(score - lse),
    and with the merged lse these are the weights of the whole; so dk and dv of a part are those of the whole,
    and dq is the sum over the parts. :func:`merge_backward` is there for parts from elsewhere.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 8, 4))
    >>> whole = nsa.patterns.full(8)
    >>> half = nsa.patterns.full(8, n_keys=4)
    >>> parts = [
    ...     nsa.sparse_attention(q, k[:, keys], v[:, keys], half, return_lse=True)
    ...     for keys in (slice(4), slice(4, 8))
    ... ]
    >>> out, lse = nsa.merge(*zip(*parts))
    >>> bool(np.allclose(out, nsa.sparse_attention(q, k, v, whole)))
    True
    """
    parts, sums = _checked(outs, lses)
    kind = _accumulator(parts[0], sums[0])
    lse = _log_sum(sums, kind)
    out = np.zeros(parts[0].shape, kind)
    for part, weight in zip(parts, _weights(sums, lse, kind), strict=True):
        out += _scaled(weight, part, kind)
    return out.astype(parts[0].dtype, copy=False), lse.astype(sums[0].dtype, copy=False)


def merge_backward(
    dout: Any, outs: Sequence[Any], lses: Sequence[Any], out: Any, lse: Any, *, dlse: Any = None
) -> tuple[list[Array], list[Array]]:
    """Gradients of :func:`merge` with respect to the outs and lses of its parts.

    For parts whose outs and lses depend on something in a way of their own. Parts that
    :func:`sparse_attention` made need none of this; see the notes of :func:`merge`.

    Parameters
    ----------
    dout : array (..., n_q, d_v)
        Gradient of a scalar with respect to the merged out.
    outs, lses
        As in the forward call.
    out, lse : arrays
        What :func:`merge` returned.
    dlse : array (..., n_q), optional
        Gradient with respect to the merged lse, if that was used.

    Returns
    -------
    douts, dlses : lists of arrays
        Shaped and typed like `outs` and `lses`; zeros where a part has no keys.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> outs, lses = [np.array([[2.0]]), np.array([[5.0]])], [np.array([0.0]), np.log([2.0])]
    >>> out, lse = nsa.merge(outs, lses)
    >>> douts, dlses = nsa.merge_backward(np.ones((1, 1)), outs, lses, out, lse)
    >>> np.round([douts[0][0, 0], douts[1][0, 0], dlses[0][0], dlses[1][0]], 3).tolist()
    [0.333, 0.667, -0.667, 0.667]
    """
    parts, sums = _checked(outs, lses)
    shape, dtype = parts[0].shape, parts[0].dtype
    kind = _accumulator(parts[0], sums[0])
    given = check_gradient(host_array(dout, "dout"), shape, dtype, "dout").astype(kind, copy=False)
    merged = check_gradient(host_array(out, "out"), shape, dtype, "out").astype(kind, copy=False)
    total = check_gradient(host_array(lse, "lse"), shape[:-1], sums[0].dtype, "lse").astype(kind, copy=False)
    of_total = np.zeros(shape[:-1], kind)
    if dlse is not None:
        of_total += check_gradient(host_array(dlse, "dlse"), shape[:-1], sums[0].dtype, "dlse")
    douts, dlses = [], []
    for part, weight in zip(parts, _weights(sums, total, kind), strict=True):
        some = weight != 0.0  # NaN is some
        douts.append(_scaled(weight, given, kind).astype(dtype, copy=False))
        moved = np.where(some[..., None], part.astype(kind, copy=False) - merged, 0.0)
        pull = np.einsum("...d,...d->...", np.where(some[..., None], given, 0.0), moved) + of_total
        dlses.append(np.where(some, weight * pull, 0.0).astype(sums[0].dtype, copy=False))
    return douts, dlses


def gated_sum(outs: Sequence[Any], gates: Any) -> Array:
    """``sum over branches b of gates[..., b] * outs[b]``, as branches of attention are added up.

    Parameters
    ----------
    outs : sequence of arrays (..., n_q, d_v), or one array with the branches along a leading axis
    gates : array (..., n_q, branches)
        A factor for every query and branch, in the type of `outs`.

    Returns
    -------
    array (..., n_q, d_v)
        In the type of `outs`; summed in float32, or float64 for float64.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> gates = np.array([[1.0, 0.5], [0.0, 1.0]])
    >>> nsa.gated_sum([np.ones((2, 1)), np.full((2, 1), 4.0)], gates)[:, 0].tolist()
    [3.0, 4.0]
    """
    parts, factors, kind = _gated(outs, gates)
    out = np.zeros(parts[0].shape, kind)
    for number, part in enumerate(parts):
        out += factors[..., number, None] * part
    return out.astype(parts[0].dtype, copy=False)


def gated_sum_backward(dout: Any, outs: Sequence[Any], gates: Any) -> tuple[list[Array], Array]:
    """Gradients of :func:`gated_sum` with respect to the branches and the gates.

    Parameters
    ----------
    dout : array (..., n_q, d_v)
        Gradient of a scalar with respect to the sum.
    outs, gates
        As in the forward call.

    Returns
    -------
    douts : list of arrays (..., n_q, d_v)
        What :func:`sparse_attention_backward` takes as `dout` for every branch.
    dgates : array (..., n_q, branches)

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> douts, dgates = nsa.gated_sum_backward(np.ones((1, 2)), [np.full((1, 2), 3.0)], np.array([[0.5]]))
    >>> douts[0].tolist(), dgates.tolist()
    ([[0.5, 0.5]], [[6.0]])
    """
    parts, factors, kind = _gated(outs, gates)
    shape, dtype = parts[0].shape, parts[0].dtype
    given = check_gradient(host_array(dout, "dout"), shape, dtype, "dout").astype(kind, copy=False)
    douts = [(factors[..., number, None] * given).astype(dtype, copy=False) for number in range(len(parts))]
    dgates = np.stack([np.einsum("...d,...d->...", given, part.astype(kind)) for part in parts], axis=-1)
    return douts, dgates.astype(dtype, copy=False)


def _gated(outs: Sequence[Any], gates: Any) -> tuple[list[Array], Array, np.dtype[Any]]:
    """Branches, gates in the type of sums, and that type."""
    factors = host_array(gates, "gates")
    # A branch and its gates fit each other as a part and its lse do.
    columns = [factors[..., number] for number in range(factors.shape[-1] if factors.ndim else 0)]
    parts, columns = _checked(outs, columns, "gates")
    if columns[0].dtype != parts[0].dtype:
        raise DtypeError(
            f"gates of {columns[0].dtype.name} and outs of {parts[0].dtype.name}",
            "one type for both",
            f"pass gates.astype({parts[0].dtype.name!r})",
        )
    kind = _accumulator(parts[0], columns[0])
    return parts, factors.astype(kind, copy=False), kind


def _checked(
    outs: Sequence[Any], lses: Sequence[Any], called: str = "lses"
) -> tuple[list[Array], list[Array]]:
    """The parts, and a number a query for each, as NumPy arrays that fit each other."""
    parts = [host_array(out, f"outs[{number}]") for number, out in enumerate(outs)]
    sums = [host_array(lse, f"{called}[{number}]") for number, lse in enumerate(lses)]
    if not parts or len(parts) != len(sums):
        raise ArgumentError(
            f"{len(parts)} outs and {len(sums)} {called}",
            "as many of both, at least one",
            "pass a pair a part",
        )
    for name, arrays, dropped in (("outs", parts, 0), (called, sums, 1)):
        shape = parts[0].shape[: parts[0].ndim - dropped]
        for number, array in enumerate(arrays):
            check_dtype(array.dtype, f"{name}[{number}]")
            if array.shape != shape or array.ndim < 2 - dropped or array.dtype != arrays[0].dtype:
                raise ShapeError(
                    f"{name}[{number}] of {array.dtype.name} with shape {array.shape} beside outs[0] of "
                    f"{parts[0].dtype.name} with shape {parts[0].shape}",
                    f"outs (..., n_q, d_v) and {called} (..., n_q), the same for all parts",
                    "make every part's call with the same queries and width of values",
                )
    return parts, sums


def _accumulator(out: Array, lse: Array) -> np.dtype[Any]:
    return np.dtype(np.float64 if np.float64 in (out.dtype, lse.dtype) else np.float32)


def _log_sum(sums: list[Array], kind: np.dtype[Any]) -> Array:
    """Logarithm of the sum of exp(lse) over the parts; -inf where all are."""
    wide = np.stack([lse.astype(kind, copy=False) for lse in sums])
    peak = wide.max(axis=0)
    shift = np.where(np.isneginf(peak), kind.type(0.0), peak)
    with np.errstate(invalid="ignore", divide="ignore"):  # inf - inf is NaN, log(0) is -inf: as they should
        return np.asarray(shift + np.log(np.exp(wide - shift).sum(axis=0)))


def _weights(sums: list[Array], total: Array, kind: np.dtype[Any]) -> list[Array]:
    """Share of every part in every row; 0 for a part without keys."""
    with np.errstate(invalid="ignore"):
        return [
            np.where(np.isneginf(lse), kind.type(0.0), np.exp(lse.astype(kind, copy=False) - total))
            for lse in sums
        ]


def _scaled(weight: Array, rows: Array, kind: np.dtype[Any]) -> Array:
    """``weight * rows`` in which rows without weight are 0, whatever they hold."""
    column = weight[..., None]
    product = np.zeros(rows.shape, kind)
    with np.errstate(invalid="ignore", over="ignore"):
        np.multiply(column, rows.astype(kind, copy=False), out=product, where=column != 0.0)
    return product
