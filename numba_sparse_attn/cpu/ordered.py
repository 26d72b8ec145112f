"""Calls in another order of tokens: rows are copied into that order, computed, and results copied back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats.work import Request
from ..jit import for_each

__all__ = ["backward_in_order", "forward_in_order"]

_Array = npt.NDArray[Any]
_Places = npt.NDArray[np.int32]


def forward_in_order(
    run: Callable[..., None],
    request: Request,
    q: _Array,
    k: _Array,
    v: _Array,
    out: _Array,
    lse: _Array | None,
) -> None:
    """``run(request, q, k, v, out, lse)`` on rows in the order of the request's structures."""
    queries, keys = request.query_orders, request.key_orders
    to_queries, to_keys = [one.queries for one in queries], [one.keys for one in keys]
    moved_out = np.empty(out.shape, out.dtype)
    moved_lse = None if lse is None else np.empty(lse.shape, lse.dtype)
    run(
        request.inner,
        *(_taken(array, to) for array, to in ((q, to_queries), (k, to_keys), (v, to_keys))),
        moved_out,
        moved_lse,
    )
    back = [one.query_places for one in queries]
    _take(moved_out, back, out)
    if moved_lse is not None and lse is not None:
        _take(moved_lse[..., None], back, lse[..., None])


def backward_in_order(
    run: Callable[..., Any],
    request: Request,
    dout: _Array,
    q: _Array,
    k: _Array,
    v: _Array,
    out: _Array,
    lse: _Array,
    dq: _Array,
    dk: _Array,
    dv: _Array,
) -> None:
    """``run(request, dout, q, k, v, out, lse, dq, dk, dv)`` likewise."""
    queries, keys = request.query_orders, request.key_orders
    to_queries, to_keys = [one.queries for one in queries], [one.keys for one in keys]
    given = (dout, to_queries), (q, to_queries), (k, to_keys), (v, to_keys), (out, to_queries)
    results = [np.empty(array.shape, array.dtype) for array in (dq, dk, dv)]
    run(
        request.inner,
        *(_taken(array, to) for array, to in given),
        _taken(lse[..., None], to_queries)[..., 0],
        *results,
    )
    from_queries, from_keys = [one.query_places for one in queries], [one.key_places for one in keys]
    for result, back, target in zip(results, (from_queries, from_keys, from_keys), (dq, dk, dv), strict=True):
        _take(result, back, target)


def _taken(array: _Array, rows: Sequence[_Places]) -> _Array:
    """A new array of the rows of every head in that head's order."""
    target = np.empty(array.shape, array.dtype)
    _take(array, rows, target)
    return target


def _take(source: _Array, rows: Sequence[_Places], target: _Array) -> None:
    """``target[head, p] = source[head, rows[head][p]]`` for the heads of all batch elements, in C order."""
    lead = source.shape[:-2]

    def take(number: int, worker: int) -> None:
        place = np.unravel_index(number, lead)
        np.take(source[place], rows[number], axis=0, out=target[place], mode="clip")

    for_each(take, range(len(rows)))
