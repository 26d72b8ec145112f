"""Calls in another order of tokens on a GPU: rows are copied into that order, computed, and copied back.

Work arrays come from the pool that other temporaries come from, on the stream of the call, and are gone when
it is. Every array is one launch; row numbers are uploaded when an order is first met.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from ...formats.work import Request
from .. import memory
from ..view import DeviceView
from .classes import backward_in_classes, forward_in_classes
from .moving import Role, prepare_moves

__all__ = [
    "backward_in_classes",
    "backward_in_order",
    "forward_in_classes",
    "forward_in_order",
    "in_order",
]

_Q, _K = Role(of_keys=False, outward=False), Role(of_keys=True, outward=False)
_OUT_Q, _OUT_K = Role(of_keys=False, outward=True), Role(of_keys=True, outward=True)
#: Of q, k, v, out, lse; and of dout, q, k, v, out, lse, dq, dk, dv.
_FORWARD = _Q, _K, _K, _OUT_Q, _OUT_Q
_BACKWARD = _Q, _Q, _K, _K, _Q, _Q, _OUT_Q, _OUT_K, _OUT_K


def in_order(run: Callable[..., None], request: Request, *, forward: bool) -> Callable[..., None]:
    """An engine's function `run`, for requests whose structures stand in another order than the arrays."""
    if request.fold > 1:
        return functools.partial(forward_in_classes if forward else backward_in_classes, run)
    return functools.partial(forward_in_order if forward else backward_in_order, run)


def forward_in_order(
    run: Callable[..., None],
    request: Request,
    q: DeviceView,
    k: DeviceView,
    v: DeviceView,
    out: DeviceView,
    lse: DeviceView | None,
) -> None:
    """Queue ``run(request, q, k, v, out, lse)`` on rows in the order of the request's structures."""
    arrays = (q, k, v, out) if lse is None else (q, k, v, out, lse)
    _run(run, request, arrays, _FORWARD[: len(arrays)], out, () if lse is not None else (None,))


def backward_in_order(
    run: Callable[..., None],
    request: Request,
    dout: DeviceView,
    q: DeviceView,
    k: DeviceView,
    v: DeviceView,
    out: DeviceView,
    lse: DeviceView,
    dq: DeviceView,
    dk: DeviceView,
    dv: DeviceView,
) -> None:
    """Queue ``run(request, dout, q, k, v, out, lse, dq, dk, dv)`` likewise."""
    _run(run, request, (dout, q, k, v, out, lse, dq, dk, dv), _BACKWARD, dq, ())


def _run(
    run: Callable[..., None],
    request: Request,
    arrays: tuple[DeviceView, ...],
    roles: tuple[Role, ...],
    target: DeviceView,
    rest: tuple[None, ...],
) -> None:
    """On the stream of `target`."""
    addresses = [array.address for array in arrays]
    key = (
        *("in order", len(arrays), target.device),
        *[array.strides for array in arrays],
        *[address & 15 for address in addresses],
    )
    moves = request.memo.get(key)
    if moves is None:
        moves = request.memo[key] = prepare_moves(request, arrays, roles, target.device)
    room = memory.scratch(moves.nbytes, target.device, target.stream, target.library)
    moves.queue(moves.before, addresses, room.address, target)
    run(request.inner, *moves.views(room.address, target), *rest)
    moves.queue(moves.after, addresses, room.address, target)
