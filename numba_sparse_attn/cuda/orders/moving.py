"""What calls in an order with equal requests and equal layouts share: all but addresses and the stream."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...formats.work import Request
from .. import staging, streams
from ..launch import launch, load_kernel
from ..view import DeviceView, merged_stride
from .rows import MOVE_SIGNATURE, MOVE_THREADS, RowShape, make_move, row_shape

if TYPE_CHECKING:
    from ...orders.order import Order

__all__ = ["Move", "Moves", "Role", "grid_of", "prepare_moves", "upload"]

_ALIGNMENT = 16
#: Work arrays begin at multiples of this.
_ROOM = 256
#: Largest second dimension of a grid.
_MOST_ROWS_OF_BLOCKS = 65_535

Strides = tuple[int, int, int, int]


class Role(NamedTuple):
    """Whether rows of an array are keys, and whether it is a result."""

    of_keys: bool
    outward: bool


class _Work(NamedTuple):
    """An array in order, in temporary memory."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]


class Move(NamedTuple):
    """A launch: the array of the call with this number, where its rows begin there and in the temporary
    memory, and the other arguments.
    """

    kernel: Any
    grid: tuple[int, int, int]
    number: int
    offset: int
    room_offset: int
    outward: bool
    rest: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Moves:
    """The copies around a call.

    Attributes
    ----------
    nbytes : int
        Temporary memory.
    work : tuple
        The arrays in order.
    before, after : tuple
        Launches.
    hold : object
        What keeps row numbers on the device.
    """

    nbytes: int
    work: tuple[_Work, ...]
    before: tuple[Move, ...]
    after: tuple[Move, ...]
    hold: object

    def queue(self, moves: tuple[Move, ...], addresses: list[int], room: int, target: DeviceView) -> None:
        """Queue some of the launches on the stream of `target`."""
        stream = streams.stream_object(target.stream, target.device)
        for move in moves:
            ends = addresses[move.number] + move.offset, room + move.room_offset
            launch(
                move.kernel,
                move.grid,
                MOVE_THREADS,
                stream,
                (*(ends[::-1] if move.outward else ends), *move.rest),
            )

    def views(self, room: int, target: DeviceView) -> list[DeviceView]:
        """The arrays in order, as an engine takes them."""
        return [
            DeviceView(
                room + work.offset,
                work.shape,
                work.strides,
                work.dtype,
                target.device,
                target.stream,
                target.library,
                None,
            )
            for work in self.work
        ]


def prepare_moves(
    request: Request, arrays: tuple[DeviceView, ...], roles: tuple[Role, ...], device: int
) -> Moves:
    """The launches for arrays ``(..., heads, n, d)``, or ``(..., heads, n)``, that lie like these."""
    nbytes = 0
    work: list[_Work] = []
    moves: list[Move] = []
    lists: dict[Role, _Lists] = {}
    for number, (array, role) in enumerate(zip(arrays, roles, strict=True)):
        flat = array.ndim == len(arrays[0].shape) - 1
        one = _ordered(array, nbytes, padded=not flat)
        work.append(one)
        size = one.shape[0] * one.strides[0] if one.shape[0] else 0
        nbytes += -(-max(size, 1) // _ROOM) * _ROOM
        if array.size:
            if role not in lists:
                lists[role] = _lists_of(request, role, device)
            moves += _moves(number, array, one, role, lists[role], flat, device)
    return Moves(
        nbytes,
        tuple(work),
        tuple(move for move in moves if not move.outward),
        tuple(move for move in moves if move.outward),
        [one.hold for one in lists.values()],
    )


def _ordered(array: DeviceView, offset: int, *, padded: bool) -> _Work:
    """Contiguous but for rows, which begin at multiples of 16 bytes as engines like it."""
    stride = array.dtype.itemsize
    strides = [stride]
    if padded:
        stride = -(-array.shape[-1] * stride // _ALIGNMENT) * _ALIGNMENT
    else:
        stride *= array.shape[-1]
    for length in reversed(array.shape[:-1]):
        strides.append(stride)
        stride *= length
    return _Work(offset, array.shape, tuple(reversed(strides)), array.dtype)


def _moves(
    number: int, array: DeviceView, work: _Work, role: Role, lists: _Lists, flat: bool, device: int
) -> Iterator[Move]:
    """A launch for all batch elements if the axes before heads merge, else one for each."""
    shape = (*array.shape, 1) if flat else array.shape
    size = array.dtype.itemsize
    own, inner = ((*strides, size) if flat else strides for strides in (array.strides, work.strides))
    heads, rows, columns = shape[-3:]
    words = (
        own[-1] == size
        and columns * size % _ALIGNMENT == 0
        and array.address % _ALIGNMENT == 0
        and all(
            step % _ALIGNMENT == 0 for length, step in zip(shape[:-1], own[:-1], strict=True) if length > 1
        )
    )
    row, count = row_shape(array.dtype.name, columns * size, size, words=words)
    kernel = load_kernel(make_move, row, MOVE_SIGNATURE, MOVE_THREADS, device)
    for first, batches, offset, step in _parts(shape[:-3], own[:-3]):
        entries = batches * heads
        ends = [
            (outer, *strides[-3:-1], row.word_bytes if words else strides[-1])
            for outer, strides in ((step, own), (heads * inner[-3], inner))
        ]
        yield Move(
            kernel=kernel,
            grid=grid_of(row, rows, entries),
            number=number,
            offset=offset,
            room_offset=work.offset + first * heads * inner[-3],
            outward=role.outward,
            rest=(
                *lists.of(first * heads),
                *(entries, heads, rows, count),
                *(stride for end in (ends[::-1] if role.outward else ends) for stride in end),
            ),
        )


def grid_of(shape: RowShape, rows: int, entries: int) -> tuple[int, int, int]:
    """Blocks for so many rows of so many heads."""
    blocks = -(-rows // shape.rows) * shape.parts
    return blocks, min(entries, _MOST_ROWS_OF_BLOCKS), -(-entries // _MOST_ROWS_OF_BLOCKS)


def _parts(lead: tuple[int, ...], strides: tuple[int, ...]) -> Iterator[tuple[int, int, int, int]]:
    """(first batch element, how many, offset in bytes, stride)."""
    merged = merged_stride(lead, strides)
    if merged is not None:
        yield 0, math.prod(lead), 0, merged
        return
    for first, place in enumerate(np.ndindex(lead)):
        yield first, 1, sum(i * stride for i, stride in zip(place, strides, strict=True)), 0


# Row numbers ---------------------------------------------------------------------------------------------


class _Lists(NamedTuple):
    """Where the row numbers of heads lie: one list for all of them, or a table of the lists' addresses."""

    numbers: int
    table: int
    hold: object

    def of(self, entry: int) -> tuple[int, int]:
        """Arguments for heads from the one with this number on."""
        return self.numbers, self.table + 8 * entry if self.table else 0


def _lists_of(request: Request, role: Role, device: int) -> _Lists:
    """For every head the numbers of the rows that are copied: the caller's, or outward their places."""
    name = ("key" if role.of_keys else "query") + "_places" if role.outward else ""
    name = name or ("keys" if role.of_keys else "queries")
    orders = request.key_orders if role.of_keys else request.query_orders
    views = [_uploaded(order, name, device) for order in orders]
    if len({view.address for view in views}) == 1:
        return _Lists(views[0].address, 0, views[0])
    table = upload(np.array([view.address for view in views], np.int64), device)
    return _Lists(0, table.address, (table, views))


#: Row numbers on devices, by order.
_UPLOADED: weakref.WeakKeyDictionary[Order, dict[tuple[str, int], DeviceView]] = weakref.WeakKeyDictionary()


def _uploaded(order: Order, name: str, device: int) -> DeviceView:
    known = _UPLOADED.setdefault(order, {})
    if (name, device) not in known:
        known[name, device] = upload(getattr(order, name), device)
    return known[name, device]


def upload(array: npt.NDArray[Any], device: int) -> DeviceView:
    """A copy on a device, complete when this returns and on no stream of the caller's."""
    stream = streams.own_stream(device)
    with streams.beside_capture():
        view = staging.to_device(array, device, stream)
        streams.stream_object(stream, device).sync()
    return view
