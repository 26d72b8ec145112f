"""What backward calls with equal requests and equal layouts share: all but addresses and the stream.

See ``prepared.py``, which does the same for forward calls.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...formats.tiles import TILE
from ...formats.work import Request
from .. import memory, streams
from ..changes import DeviceChanges
from ..device.row_parts import gradient_row_bytes
from ..launch import launch, load_kernel
from ..view import DeviceView
from .backward_sm90 import BACKWARD_SIGNATURE, THREADS, make_backward
from .maps import MapSets, TensorLayout, map_sets
from .merge import MERGE_WARPS
from .merge_gradients import MERGE_GRADIENTS_SIGNATURE, make_gradient_merge
from .operands import Operand, Part, parts_of
from .prepared import factor_of, multiprocessors, queue_copy, tiles_of
from .schedule import Schedule, key_schedule_of, schedule_of
from .shape_gradients import gradient_shapes
from .statistics import StatisticsLaunch, prepare_statistics, with_columns

__all__ = ["BackwardLaunch", "prepare_backward"]

#: Places of a call's arrays.
_DOUT, _Q, _K, _V, _OUT, _LSE, _DQ, _DK, _DV = range(9)
#: Arrays that kernels reach by the copy engine or in pairs of elements, what is read and what is written.
_READ, _WRITTEN = (_DOUT, _Q, _K, _V), (_DQ, _DK, _DV)
#: What stays in shared memory (two), what comes in steps (two), and the results.
_OF_QUERIES = _Q, _DOUT, _K, _V, _DQ, _DQ
_OF_KEYS = _K, _V, _Q, _DOUT, _DK, _DV


class _Sweep(NamedTuple):
    """One launch of ``backward_sm90.py``, ready but for addresses.

    Attributes
    ----------
    arrays : tuple of int
        Places of own_a, own_b, other_a, other_b, target_a and target_b.
    kernel : object
    shared_bytes : int
    layout : TensorLayout
    schedule : Schedule
    merge : object or None
        The kernel that makes results of rows that were cut, if there are any.
    parts_bytes : int
        Memory for parts of these rows.
    sizes, strides, factors
        Arguments of the kernels.
    """

    arrays: tuple[int, ...]
    kernel: Any
    shared_bytes: int
    layout: TensorLayout
    schedule: Schedule
    merge: Any
    parts_bytes: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    factors: tuple[np.float32, np.float32]


@dataclass(frozen=True, eq=False)
class BackwardLaunch:
    """The launches for some batch elements, ready but for addresses.

    Attributes
    ----------
    kind : str
    offsets : tuple of int
        From the addresses of the call's arrays to this part's.
    copied : tuple of (int, Operand)
        Which of them kernels cannot read or write where they lie, and how they lie.
    statistics : StatisticsLaunch or None
    sweeps : tuple
    maps : MapSets
    """

    kind: str
    offsets: tuple[int, ...]
    copied: tuple[tuple[int, Operand], ...]
    statistics: StatisticsLaunch | None
    sweeps: tuple[_Sweep, ...]
    maps: MapSets

    def run(self, addresses: tuple[int, ...], settings: int, target: DeviceView) -> None:
        """Queue them on the stream of `target`; `settings` of changes are an address or 0."""
        device, handle = target.device, target.stream
        stream = streams.stream_object(handle, device)
        own = tuple(map(operator.add, addresses, self.offsets))
        places = list(own)
        rooms = []
        for number, operand in self.copied:
            room = memory.scratch(operand.packed_bytes, device, handle, target.library)
            rooms.append(room)
            places[number] = room.address
            if number in _READ:
                queue_copy(
                    self.kind, operand.moved(own[number]), operand.packed(room.address), device, stream
                )
        pairs = 0
        if self.statistics is not None:
            room = memory.scratch(self.statistics.nbytes, device, handle, target.library)
            rooms.append(room)
            pairs = room.address
            self.statistics.run(own[_OUT], own[_DOUT], own[_LSE], pairs, stream)
        capturing = streams.is_capturing(handle)
        for sweep in self.sweeps:
            where = tuple([places[number] for number in sweep.arrays])
            schedule = sweep.schedule
            parts = 0
            if sweep.merge is not None:
                room = memory.scratch(sweep.parts_bytes, device, handle, target.library)
                rooms.append(room)
                parts = room.address
            arguments = (pairs, parts, *sweep.sizes, *where, *sweep.strides, *sweep.factors, settings)
            with self.maps.lock:
                maps = self.maps.address_of(sweep.layout, where[:4], capturing=capturing)
                launch(
                    sweep.kernel,
                    schedule.blocks,
                    THREADS,
                    stream,
                    (maps, schedule.work, schedule.begins, *arguments),
                    shared_bytes=sweep.shared_bytes,
                )
            if sweep.merge is not None:
                blocks = schedule.long_count * TILE // MERGE_WARPS
                launch(sweep.merge, blocks, 32 * MERGE_WARPS, stream, (schedule.long_rows, *arguments))
        for number, operand in self.copied:
            if number in _WRITTEN:
                queue_copy(
                    self.kind, operand.packed(places[number]), operand.moved(own[number]), device, stream
                )


def prepare_backward(
    request: Request, arrays: tuple[DeviceView, ...], changes: DeviceChanges | None
) -> tuple[BackwardLaunch, ...]:
    """The launches of a call on (dout, q, k, v, out, lse, dq, dk, dv) that lie like these."""
    shaped = tuple(with_columns(array) if number == _LSE else array for number, array in enumerate(arrays))
    addresses = tuple(array.address for array in arrays)
    kinds, device = changes.kinds if changes else (), arrays[_DQ].device
    return tuple(_prepare_part(request, part, addresses, kinds, device) for part in parts_of(shaped))


def _prepare_part(
    request: Request, part: Part, addresses: tuple[int, ...], changes: tuple[Any, ...], device: int
) -> BackwardLaunch:
    operands = list(part.operands)
    copied = tuple(
        (number, operands[number])
        for number in _READ + _WRITTEN
        if not operands[number].boxable and 0 not in operands[number].lengths
    )
    for number, operand in copied:
        operands[number] = operand.packed(operand.address)
    structures = tiles_of(request)
    which = request.which[part.first : part.first + part.length]
    blocks = multiprocessors(device)
    statistics, sweeps = None, []
    if request.n_q:
        out, dout, lse = (part.operands[number] for number in (_OUT, _DOUT, _LSE))
        statistics = prepare_statistics(request.dtype.name, out, dout, lse, device)
        schedule = schedule_of(structures, which, device, blocks, cutting=True)
        sweeps += _sweeps(request, operands, _OF_QUERIES, schedule, changes, device)
    if request.n_k:
        schedule = key_schedule_of(structures, which, request.group, device, blocks, cutting=True)
        sweeps += _sweeps(request, operands, _OF_KEYS, schedule, changes, device)
    return BackwardLaunch(
        kind=request.dtype.name,
        offsets=tuple(
            operand.address - address for operand, address in zip(part.operands, addresses, strict=True)
        ),
        copied=copied,
        statistics=statistics,
        sweeps=tuple(sweeps),
        maps=map_sets(device),
    )


def _sweeps(
    request: Request,
    operands: list[Operand],
    arrays: tuple[int, ...],
    schedule: Schedule,
    changes: tuple[Any, ...],
    device: int,
) -> list[_Sweep]:
    """The launches for gradients of queries or of keys."""
    of_keys = arrays is _OF_KEYS
    own = operands[arrays[0]]
    if not (request.n_k if not of_keys else request.n_q):
        arrays = (*arrays[:2], *arrays[:2], *arrays[4:])  # nothing is read, but a description needs a length
    shapes = gradient_shapes(
        request.dtype.name,
        request.head_dim,
        request.value_dim,
        of_keys=of_keys,
        masked=any(tiles.partial_count for tiles in tiles_of(request)),
        negate=request.scale < 0,
        changes=changes,
    )
    sizes = (own.lengths[1], request.group, own.lengths[2], -(-request.n_q // TILE) * TILE)
    return [
        _Sweep(
            arrays=arrays,
            kernel=load_kernel(
                make_backward, shape, BACKWARD_SIGNATURE, THREADS, device, shared_bytes=shape.shared_bytes
            ),
            shared_bytes=shape.shared_bytes,
            layout=TensorLayout(
                request.dtype.name,
                tuple(operands[number] for number in arrays[:4]),
                (TILE // 2, TILE // 2, shape.columns, shape.columns),
            ),
            schedule=schedule,
            merge=load_kernel(make_gradient_merge, shape, MERGE_GRADIENTS_SIGNATURE, 32 * MERGE_WARPS, device)
            if schedule.parts
            else None,
            parts_bytes=schedule.parts
            * TILE
            * gradient_row_bytes(shape.depth, shape.width, first=shape.first, second=shape.second),
            sizes=(*sizes, request.head_dim, request.value_dim),
            strides=tuple(stride for number in arrays for stride in operands[number].strides[:3]),
            factors=(factor_of(request), np.float32(request.scale)),
        )
        for shape in shapes
    ]
