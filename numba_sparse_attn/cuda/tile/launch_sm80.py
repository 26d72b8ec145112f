"""Launches of the kernels that need none of Hopper's instructions."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...formats.tiles import Tiles
from ...formats.work import Request
from .. import memory, streams
from ..changes import DeviceChanges
from ..launch import launch, load_kernel, target_of
from ..view import DeviceView
from .backward_sm80 import BACKWARD_SIGNATURE, make_backward
from .forward_sm80 import FORWARD_SIGNATURE, make_forward
from .operands import Operand, parts_of
from .prepared import factor_of, queue_copy, tiles_of
from .schedule import key_schedule_of, schedule_of
from .shape_sm80 import fragment_shape, gradient_shapes
from .statistics import prepare_statistics, with_columns

__all__ = ["backward_without_wgmma", "forward_without_wgmma", "has_wgmma"]


def has_wgmma(device: int) -> bool:
    """Whether a device has products of warpgroups: Hopper, and nothing before or after it."""
    return target_of(device).variant == "a"


def forward_without_wgmma(
    request: Request,
    q: DeviceView,
    k: DeviceView,
    v: DeviceView,
    out: DeviceView,
    lse: DeviceView | None,
    changes: DeviceChanges | None,
) -> None:
    """Queue attention into `out`, and into `lse` (contiguous) if there is one."""
    for part in parts_of((q, k, v, out)):
        lse_at = 0 if lse is None else lse.address + part.first * request.heads * request.n_q * 4
        with _aligned(request.dtype.name, part.operands, 3, out) as (operands, stream):
            _queue_forward(request, part.first, operands, lse_at, changes, out.device, stream)


def backward_without_wgmma(
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
    changes: DeviceChanges | None,
) -> None:
    """Queue gradients into `dq`, `dk` and `dv`; the same bits every time."""
    if not request.which.size:
        return
    kind, device = request.dtype.name, dq.device
    for part in parts_of((q, k, v, dout, dq, dk, dv, out, with_columns(lse))):
        *layouts, out_layout, lse_layout = part.operands
        statistics = prepare_statistics(kind, out_layout, layouts[3], lse_layout, device)
        pairs = memory.scratch(statistics.nbytes, device, dq.stream, dq.library)
        addresses = out_layout.address, layouts[3].address, lse_layout.address, pairs.address
        with _aligned(kind, layouts, 4, dq) as (operands, stream):
            statistics.run(*addresses, stream)
            _queue_backward(request, part.first, operands, pairs.address, changes, device, stream)


@contextmanager
def _aligned(
    kind: str, layouts: Sequence[Operand], inputs: int, target: DeviceView
) -> Iterator[tuple[list[Operand], Any]]:
    """Arrays whose rows lie at multiples of 16 bytes, and the stream of `target`, on which they do.

    The first `inputs` are copied beforehand where they do not lie so, the others afterwards.
    """
    device = target.device
    stream = streams.stream_object(target.stream, device)
    operands, rooms = [], []
    for number, operand in enumerate(layouts):
        if not operand.boxable:
            room = memory.scratch(operand.packed_bytes, device, target.stream, target.library)
            rooms.append(room)
            packed = operand.packed(room.address)
            if number < inputs:
                queue_copy(kind, operand, packed, device, stream)
            operand = packed
        operands.append(operand)
    yield operands, stream
    for operand, layout in list(zip(operands, layouts, strict=True))[inputs:]:
        if operand is not layout:
            queue_copy(kind, operand, layout, device, stream)


def _queue_forward(
    request: Request,
    first: int,
    operands: Sequence[Operand],
    lse_at: int,
    changes: DeviceChanges | None,
    device: int,
    stream: Any,
) -> None:
    """Queue attention of some batch elements, from `first` on; rows lie at multiples of 16 bytes."""
    length = operands[0].lengths[0]
    kinds = changes.kinds if changes else ()
    key = "tile sm80", device, first, length, kinds
    prepared = request.memo.get(key)
    if prepared is None:
        structures, masked = _structures(request)
        shape = fragment_shape(
            request.dtype.name,
            request.head_dim,
            request.value_dim,
            masked=masked,
            negate=request.scale < 0,
            changes=kinds,
        )
        kernel = load_kernel(
            make_forward,
            shape,
            FORWARD_SIGNATURE,
            shape.threads,
            device,
            shared_bytes=shape.shared_bytes,
        )
        # As many blocks as there are items.
        schedule = schedule_of(structures, request.which[first : first + length], device, sys.maxsize)
        prepared = request.memo[key] = kernel, shape, schedule
    kernel, shape, schedule = prepared
    arguments: tuple[Any, ...] = (
        schedule.work,
        lse_at,
        request.heads,
        request.group,
        request.n_q,
        request.n_k,
    )
    arguments += (request.head_dim, request.value_dim, *(operand.address for operand in operands))
    for operand in operands:
        arguments += operand.strides[:3]
    launch(
        kernel,
        schedule.blocks,
        shape.threads,
        stream,
        (*arguments, factor_of(request), changes.settings if changes else 0),
        shared_bytes=shape.shared_bytes,
    )


def _structures(request: Request) -> tuple[tuple[Tiles, ...], bool]:
    """The tiles of a call, and whether some are partial."""
    structures = tiles_of(request)
    return structures, any(tiles.partial_count for tiles in structures)


def _queue_backward(
    request: Request,
    first: int,
    operands: Sequence[Operand],
    pairs: int,
    changes: DeviceChanges | None,
    device: int,
    stream: Any,
) -> None:
    """Queue gradients of some batch elements, from `first` on; `pairs` are their statistics."""
    q, k, v, dout, dq, dk, dv = operands
    length = q.lengths[0]
    kinds = changes.kinds if changes else ()
    key = "tile sm80 backward", device, first, length, kinds
    prepared = request.memo.get(key)
    if prepared is None:
        structures, masked = _structures(request)
        which = request.which[first : first + length]
        by_queries = schedule_of(structures, which, device, sys.maxsize)
        by_keys = key_schedule_of(structures, which, request.group, device, sys.maxsize)
        prepared = request.memo[key] = [
            (
                load_kernel(
                    make_backward,
                    shape,
                    BACKWARD_SIGNATURE,
                    shape.threads,
                    device,
                    shared_bytes=shape.shared_bytes,
                ),
                shape,
                by_keys if shape.by_keys else by_queries,
            )
            for shape in gradient_shapes(
                request.dtype.name,
                request.head_dim,
                request.value_dim,
                masked=masked,
                negate=request.scale < 0,
                changes=kinds,
            )
        ]
    for kernel, shape, schedule in prepared:
        sizes: tuple[int, ...]
        if shape.by_keys:
            arrays = k, v, q, dout, dk, dv
            sizes = request.kv_heads, request.group, request.n_k, request.n_q
        else:
            arrays = q, dout, k, v, dq, dq
            sizes = request.heads, request.group, request.n_q, request.n_k
        if not sizes[2]:
            continue
        arguments: tuple[Any, ...] = (schedule.work, pairs, *sizes, request.head_dim, request.value_dim)
        arguments += tuple(array.address for array in arrays)
        for array in arrays:
            arguments += array.strides[:3]
        launch(
            kernel,
            schedule.blocks * shape.blocks_a_tile,
            shape.threads,
            stream,
            (*arguments, factor_of(request), np.float32(request.scale), changes.settings if changes else 0),
            shared_bytes=shape.shared_bytes,
        )
