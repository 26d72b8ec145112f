"""What calls with equal requests and equal layouts share: all but addresses and the stream.

A call on arrays in GPU memory costs more microseconds in Python than a small one takes on the GPU, so
everything that does not change is decided once and kept in ``Request.memo``.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...formats.tiles import TILE, Tiles
from ...formats.work import Request
from .. import memory, streams
from ..changes import DeviceChanges
from ..device.row_parts import row_bytes
from ..launch import launch, load_kernel
from ..view import DeviceView
from .copies import COPY_SIGNATURE, COPY_THREADS, make_copy
from .forward_sm90 import FORWARD_SIGNATURE, THREADS, make_forward
from .maps import MapSets, TensorLayout, map_sets
from .merge import MERGE_SIGNATURE, MERGE_WARPS, MergeShape, make_merge
from .operands import Operand, Part, parts_of
from .packing import pack_groups
from .schedule import Schedule, schedule_of
from .shape import TileShape, tile_shape

__all__ = [
    "ForwardLaunch",
    "factor_of",
    "multiprocessors",
    "prepare_forward",
    "queue_copy",
    "tiles_of",
]

#: A factor of 0 would make nan of a masked score, which is -inf; this one makes 0 of all others, too.
_SMALLEST_FACTOR = float(np.finfo(np.float32).tiny)
_OUT = 3

Addresses = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class ForwardLaunch:
    """One launch of the forward kernel, ready but for addresses.

    Attributes
    ----------
    kind : str
    offsets : tuple of int
        From the addresses of q, k, v and out to this part's.
    lse_offset : int
    copied : tuple of (int, Operand)
        Which of the four the copy engine cannot read or write where they lie, and how they lie.
    kernel : object
    shared_bytes : int
    maps : MapSets
    layout : TensorLayout
    schedule : Schedule
    merge : object or None
        The kernel that makes results of rows that were cut, if there are any.
    parts_bytes : int
        Memory for parts of these rows.
    sizes, strides, factor
        Arguments of the kernels.
    """

    kind: str
    offsets: Addresses
    lse_offset: int
    copied: tuple[tuple[int, Operand], ...]
    kernel: Any
    shared_bytes: int
    maps: MapSets
    layout: TensorLayout
    schedule: Schedule
    merge: Any
    parts_bytes: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    factor: np.float32

    def run(self, addresses: Addresses, lse: int, settings: int, out: DeviceView) -> None:
        """Queue it on the stream of `out`; `lse` and the `settings` of changes are addresses or 0."""
        device, handle = out.device, out.stream
        stream = streams.stream_object(handle, device)
        a, b, c, d = self.offsets
        places: tuple[int, ...] = (addresses[0] + a, addresses[1] + b, addresses[2] + c, addresses[3] + d)
        own = places
        rooms = []
        for number, operand in self.copied:
            room = memory.scratch(operand.packed_bytes, device, handle, out.library)
            rooms.append(room)
            places = (*places[:number], room.address, *places[number + 1 :])
            if number != _OUT:
                queue_copy(
                    self.kind, operand.moved(own[number]), operand.packed(room.address), device, stream
                )
        schedule = self.schedule
        lse = lse + self.lse_offset if lse else 0
        parts = 0
        if self.merge is not None:
            room = memory.scratch(self.parts_bytes, device, handle, out.library)
            rooms.append(room)
            parts = room.address
        arguments = (*self.sizes, *places, *self.strides, self.factor, settings)
        capturing = streams.is_capturing(handle)
        with self.maps.lock:
            maps = self.maps.address_of(self.layout, places, capturing=capturing)
            launch(
                self.kernel,
                schedule.blocks,
                THREADS,
                stream,
                (maps, schedule.work, schedule.begins, lse, parts, *arguments),
                shared_bytes=self.shared_bytes,
            )
        if self.merge is not None:
            blocks = schedule.long_count * TILE // MERGE_WARPS
            launch(self.merge, blocks, 32 * MERGE_WARPS, stream, (schedule.long_rows, parts, lse, *arguments))
        if self.copied and self.copied[-1][0] == _OUT:
            operand = self.copied[-1][1]
            queue_copy(self.kind, operand.packed(places[_OUT]), operand.moved(own[_OUT]), device, stream)


def prepare_forward(
    request: Request,
    q: DeviceView,
    k: DeviceView,
    v: DeviceView,
    out: DeviceView,
    changes: DeviceChanges | None,
) -> tuple[ForwardLaunch, ...]:
    """The launches of a call on arrays with these shapes, strides and alignments."""
    request, q, out = pack_groups(request, q, out, multiprocessors(out.device))
    masked = any(tiles.partial_count for tiles in tiles_of(request))
    kind = request.dtype.name
    shape = tile_shape(
        kind,
        request.head_dim,
        request.value_dim,
        masked=masked,
        negate=request.scale < 0,
        changes=changes.kinds if changes else (),
    )
    if not request.n_k:
        k = v = q  # nothing is read, but a description needs a length
    return tuple(
        _prepare_part(request, shape, part, (q.address, k.address, v.address, out.address), out.device)
        for part in parts_of((q, k, v, out))
    )


def _prepare_part(
    request: Request, shape: TileShape, part: Part, addresses: Addresses, device: int
) -> ForwardLaunch:
    which = request.which[part.first : part.first + part.length]
    schedule = schedule_of(tiles_of(request), which, device, multiprocessors(device), cutting=True)
    copied = tuple((number, operand) for number, operand in enumerate(part.operands) if not operand.boxable)
    operands = list(part.operands)
    for number, operand in copied:
        operands[number] = operand.packed(operand.address)
    kernel = load_kernel(
        make_forward, shape, FORWARD_SIGNATURE, THREADS, device, shared_bytes=shape.shared_bytes
    )
    merge = None
    if schedule.parts:
        merge = load_kernel(
            make_merge,
            MergeShape(shape.kind, shape.depth, shape.width, shape.negate, shape.changes),
            MERGE_SIGNATURE,
            32 * MERGE_WARPS,
            device,
        )
    offsets = [operand.address - address for operand, address in zip(part.operands, addresses, strict=True)]
    return ForwardLaunch(
        kind=request.dtype.name,
        offsets=(offsets[0], offsets[1], offsets[2], offsets[3]),
        lse_offset=part.first * request.heads * request.n_q * 4,
        copied=copied,
        kernel=kernel,
        shared_bytes=shape.shared_bytes,
        maps=map_sets(device),
        layout=TensorLayout(request.dtype.name, tuple(operands), (TILE, shape.keys, shape.keys, TILE // 2)),
        schedule=schedule,
        merge=merge,
        parts_bytes=schedule.parts * TILE * row_bytes(shape.width),
        sizes=(request.heads, request.group, request.n_q, request.head_dim, request.value_dim),
        strides=tuple(stride for operand in operands for stride in operand.strides[:3]),
        factor=factor_of(request),
    )


def factor_of(request: Request) -> np.float32:
    """What kernels multiply scores by before they take powers of two; they know its sign by their shape."""
    return np.float32(max(abs(request.scale) / math.log(2.0), _SMALLEST_FACTOR))


def tiles_of(request: Request) -> tuple[Tiles, ...]:
    """A request's structures, all of them tiles: see ``why_not`` of the engine."""
    return tuple(tiles for tiles in request.structures if isinstance(tiles, Tiles))


@functools.cache
def multiprocessors(device: int) -> int:
    """How many blocks of which each needs all shared memory run at a time."""
    attribute = streams.driver().CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
    return int(streams.call("cuDeviceGetAttribute", attribute, device))


def queue_copy(kind: str, source: Operand, target: Operand, device: int, stream: Any) -> None:
    """Queue a copy between two layouts of one array."""
    batches, heads, rows, columns = source.lengths
    every_row = batches * heads * rows
    kernel = load_kernel(make_copy, kind, COPY_SIGNATURE, COPY_THREADS, device)
    arguments = (source.address, target.address, every_row, heads, rows, columns)
    blocks = -(-every_row // (COPY_THREADS // 32))
    launch(kernel, blocks, COPY_THREADS, stream, (*arguments, *source.strides, *target.strides))
