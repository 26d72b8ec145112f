"""Launches of the kernel that needs none of Hopper's instructions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from ...errors import EngineError
from ...formats.tiles import Tiles
from ...formats.work import Request
from .. import memory, streams
from ..launch import launch, load_kernel, target_of
from ..view import DeviceView
from .forward_sm80 import FORWARD_SIGNATURE, make_forward
from .operands import Operand, parts_of
from .prepared import factor_of, queue_copy
from .schedule import schedule_of
from .shape_sm80 import fragment_shape

__all__ = ["backward_without_wgmma", "forward_without_wgmma", "has_wgmma"]


def has_wgmma(device: int) -> bool:
    """Whether a device has products of warpgroups: Hopper, and nothing before or after it."""
    return target_of(device).variant == "a"


def forward_without_wgmma(
    request: Request, q: DeviceView, k: DeviceView, v: DeviceView, out: DeviceView, lse: DeviceView | None
) -> None:
    """Queue attention into `out`, and into `lse` (contiguous) if there is one."""
    device, kind = out.device, request.dtype.name
    stream = streams.stream_object(out.stream, device)
    for part in parts_of((q, k, v, out)):
        operands: list[Operand] = []
        rooms = []
        for number, operand in enumerate(part.operands):
            if not operand.boxable:
                room = memory.scratch(operand.packed_bytes, device, out.stream, out.library)
                rooms.append(room)
                packed = operand.packed(room.address)
                if number < 3:
                    queue_copy(kind, operand, packed, device, stream)
                operand = packed
            operands.append(operand)
        lse_at = 0 if lse is None else lse.address + part.first * request.heads * request.n_q * 4
        _queue_part(request, part.first, operands, lse_at, device, stream)
        if operands[3] is not part.operands[3]:
            queue_copy(kind, operands[3], part.operands[3], device, stream)


def backward_without_wgmma(request: Request, *arrays: DeviceView) -> None:
    """Refused as yet."""
    raise EngineError(
        "engine 'cuda-tile' asked for gradients on this GPU",
        "gradients on Hopper",
        "use engine='cuda-warp' for gradients",
    )


def _queue_part(
    request: Request, first: int, operands: Sequence[Operand], lse_at: int, device: int, stream: Any
) -> None:
    """Queue attention of some batch elements, from `first` on; rows lie at multiples of 16 bytes."""
    length = operands[0].lengths[0]
    key = "tile sm80", device, first, length
    prepared = request.memo.get(key)
    if prepared is None:
        structures = tuple(tiles for tiles in request.structures if isinstance(tiles, Tiles))
        masked = any(tiles.partial_count for tiles in structures)
        shape = fragment_shape(
            request.dtype.name, request.head_dim, request.value_dim, masked=masked, negate=request.scale < 0
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
        (*arguments, factor_of(request)),
        shared_bytes=shape.shared_bytes,
    )
