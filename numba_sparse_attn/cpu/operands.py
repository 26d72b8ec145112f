"""What the tile kernels are handed: tables of addresses, rows of compute type, scratch, shares of work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from .. import config
from ..formats.tiles import TILE, Tiles
from ..formats.work import Structure
from ..jit import for_each, kernel
from .elements import head_addresses, load_row, type_code
from .vector import address_of, fill

__all__ = [
    "PADDING",
    "Rows",
    "aligned_empty",
    "aligned_zeros",
    "padded",
    "ranges",
    "rows_of",
    "run_all",
    "shares",
    "structure_table",
]

_Item = TypeVar("_Item")

#: Rows of scratch matrices are multiples of this many elements: whole vectors of any width.
PADDING = 16
_ALIGNMENT = 64
#: Work, in floating-point operations, that is not worth waking a second thread for.
_SERIAL_FLOPS = 20_000_000
#: Shares of work a thread: enough that an unlucky one does not leave the others waiting.
_SHARES_PER_THREAD = 6


def padded(size: int, unit: int) -> int:
    """`size` rounded up to a multiple of `unit`."""
    return -(-size // unit) * unit


def aligned_empty(size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Uninitialized 1-D array that begins on a cache line: an unaligned vector load may need two."""
    return _aligned(np.empty, size, np.dtype(dtype))


def aligned_zeros(size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """:func:`aligned_empty`, filled with 0 (by the operating system, where it is large)."""
    return _aligned(np.zeros, size, np.dtype(dtype))


def _aligned(make: Callable[..., npt.NDArray[Any]], size: int, kind: np.dtype[Any]) -> npt.NDArray[Any]:
    memory = make(size * kind.itemsize + _ALIGNMENT, np.uint8)
    begin = -memory.__array_interface__["data"][0] % _ALIGNMENT
    return memory[begin : begin + size * kind.itemsize].view(kind)


def structure_table(structures: Sequence[Structure]) -> npt.NDArray[np.int64]:
    """Addresses, ``int64 [structures, 7]``, of the arrays of every Tiles; 0 for other structures.

    indptr, columns, mask_ids, pool, transposed_indptr, transposed_rows, transposed_mask_ids.
    """
    table = np.zeros((len(structures), 7), np.int64)
    for row, tiles in zip(table, structures, strict=True):
        if isinstance(tiles, Tiles):
            row[:] = [
                array.__array_interface__["data"][0]
                for array in (
                    tiles.indptr,
                    tiles.columns,
                    tiles.mask_ids,
                    tiles.pool,
                    tiles.transposed_indptr,
                    tiles.transposed_rows,
                    tiles.transposed_mask_ids,
                )
            ]
    return table


class Rows(NamedTuple):
    """Matrices as the products read them: compute type, elements side by side.

    Attributes
    ----------
    addresses : int64 [batch, heads]
    stride : int
        Bytes from row to row.
    owner : array
        Keeps the memory alive.
    """

    addresses: npt.NDArray[np.int64]
    stride: int
    owner: npt.NDArray[Any]


@kernel
def _copy_rows_kernel(target, width, addresses, code, stride, step, rows, depth, first_unit, last_unit):
    """Convert blocks of TILE rows, counted through all matrices, and pad them with zeros to `width`."""
    begin = address_of(target)
    blocks = (rows + TILE - 1) // TILE
    for unit in range(first_unit, last_unit):
        matrix = unit // blocks
        first = (unit - matrix * blocks) * TILE
        for row in range(first, first + TILE if first + TILE < rows else rows):
            place = (matrix * rows + row) * width
            load_row(code, addresses[matrix] + row * stride, step, depth, target, place)
            rest = begin + (place + depth) * target.itemsize
            fill(target, rest, width - depth, target.dtype.type(0.0))


def rows_of(array: npt.NDArray[Any], accumulator: np.dtype[Any], unit: int) -> Rows:
    """The matrices of an array (..., heads, n, d), in place where they can be read as they are.

    Rows are readable up to a multiple of `unit` elements; what a copy adds there is 0.
    """
    addresses = head_addresses(array)
    rows, depth = array.shape[-2:]
    in_place = array.dtype == accumulator and (depth == 1 or array.strides[-1] == array.itemsize)
    if in_place and depth % unit == 0:
        return Rows(addresses, array.strides[-2], array)
    width = padded(depth, unit)
    target = aligned_empty(addresses.size * rows * width, accumulator)
    flat = np.ascontiguousarray(addresses).reshape(-1)
    code, stride, step = type_code(array.dtype), array.strides[-2], array.strides[-1]

    def copy(share: tuple[int, int], worker: int) -> None:
        _copy_rows_kernel(target, width, flat, code, stride, step, rows, depth, *share)

    units = addresses.size * -(-rows // TILE)
    for_each(copy, shares(np.ones(units, np.int64), 8 * array.size))
    begin = target.__array_interface__["data"][0]
    matrix = rows * width * accumulator.itemsize
    copied = begin + matrix * np.arange(addresses.size, dtype=np.int64).reshape(addresses.shape)
    return Rows(copied, width * accumulator.itemsize, target)


def shares(costs: npt.NDArray[np.int64], flops: int) -> list[tuple[int, int]]:
    """Ranges of units of about the same total cost, for the threads there are.

    Nothing that is computed may depend on where a range ends.
    """
    units = costs.size
    if units == 0:
        return []
    threads = config.thread_count()
    if threads == 1 or flops < _SERIAL_FLOPS:
        return [(0, units)]
    return ranges(costs, threads * _SHARES_PER_THREAD)


def run_all(function: Callable[[_Item, int], None], items: Sequence[_Item], flops: int) -> None:
    """:func:`for_each`, without waking a second thread for little work."""
    if flops >= _SERIAL_FLOPS:
        for_each(function, items)
        return
    for item in items:
        function(item, 0)


def ranges(costs: npt.NDArray[np.int64], count: int) -> list[tuple[int, int]]:
    """At most `count` consecutive, not empty ranges that cover all units, of about the same cost."""
    total = np.cumsum(costs)
    wanted = total[-1] * np.arange(1, count) // count
    ends = np.unique(np.concatenate(([0], np.searchsorted(total, wanted) + 1, [costs.size])))
    return list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))
