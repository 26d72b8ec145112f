"""Calls whose tokens fall into classes by their number modulo something, each computed where it lies.

A class is a batch element whose rows are so many rows apart. Nothing is moved but lse, which engines write
without gaps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...formats.work import Request
from .. import memory
from ..dlpack import contiguous_strides
from ..launch import load_kernel
from ..view import DeviceView
from .moving import Move, Moves, grid_of, upload
from .rows import MOVE_SIGNATURE, MOVE_THREADS, make_move, row_shape

__all__ = ["backward_in_classes", "forward_in_classes"]

#: Its place among the arrays of a backward call; it has no columns.
_LSE = 5


def forward_in_classes(
    run: Callable[..., None],
    request: Request,
    q: DeviceView,
    k: DeviceView,
    v: DeviceView,
    out: DeviceView,
    lse: DeviceView | None,
) -> None:
    """Queue ``run(request, q, k, v, out, lse)`` on every class."""
    views = [_in_classes(view, request.fold, 1) for view in (q, k, v, out)]
    if lse is None:
        run(request.inner, *views, None)
        return
    key = "in classes", lse.device, lse.strides
    moves = request.memo.get(key)
    if moves is None:
        moves = request.memo[key] = _moves_of(request, lse)
    room = memory.scratch(moves.nbytes, lse.device, out.stream, out.library)
    shape = (*lse.shape[:-2], request.fold, lse.shape[-2], lse.shape[-1] // request.fold)
    strides = contiguous_strides(shape, lse.dtype.itemsize)
    apart = DeviceView(room.address, shape, strides, lse.dtype, lse.device, out.stream, out.library, None)
    run(request.inner, *views, apart)
    moves.queue(moves.after, [lse.address], room.address, out)


def backward_in_classes(run: Callable[..., None], request: Request, *arrays: DeviceView) -> None:
    """Queue ``run(request, dout, q, k, v, out, lse, dq, dk, dv)`` on every class."""
    views = [_in_classes(view, request.fold, int(place != _LSE)) for place, view in enumerate(arrays)]
    run(request.inner, *views)


def _in_classes(view: DeviceView, count: int, behind: int) -> DeviceView:
    """(..., heads, n, d) as (..., classes, heads, n / classes, d); there are `behind` axes after n."""
    axis = view.ndim - 1 - behind
    rows, stride = view.shape[axis], view.strides[axis]
    return DeviceView(
        view.address,
        (*view.shape[: axis - 1], count, view.shape[axis - 1], rows // count, *view.shape[axis + 1 :]),
        (
            *view.strides[: axis - 1],
            stride,
            view.strides[axis - 1],
            count * stride,
            *view.strides[axis + 1 :],
        ),
        view.dtype,
        view.device,
        view.stream,
        view.library,
        view.owner,
        view.writable,
        view.hold,
    )


def _moves_of(request: Request, lse: DeviceView) -> Moves:
    """From a contiguous lse of every class to the caller's: a launch for every batch element of his."""
    size, heads, rows = lse.dtype.itemsize, lse.shape[-2], lse.shape[-1] // request.fold
    shape, count = row_shape(lse.dtype.name, size, size, words=False)
    kernel = load_kernel(make_move, shape, MOVE_SIGNATURE, MOVE_THREADS, lse.device)
    every = upload(np.arange(rows, dtype=np.int32), lse.device)
    of_class = rows * heads * size
    head, row = lse.strides[-2:]
    moves = [
        Move(
            kernel=kernel,
            grid=grid_of(shape, rows, request.fold * heads),
            number=0,
            offset=sum(i * stride for i, stride in zip(place, lse.strides, strict=False)),
            room_offset=number * request.fold * of_class,
            outward=True,
            rest=(
                *(every.address, 0, request.fold * heads, heads, rows, count),
                *(of_class, rows * size, size, size),
                *(row, head, request.fold * row, size),
            ),
        )
        for number, place in enumerate(np.ndindex(lse.shape[:-2]))
    ]
    return Moves(len(moves) * request.fold * of_class, (), (), tuple(moves), every)
