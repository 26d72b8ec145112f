"""How a warp finds its row, and reads and writes matrix rows: pieces shared by all warp kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda, float32, float64, int32, int64, uint32

from . import lanes as device

__all__ = ["RowTools", "head_at", "item_at", "own_head", "own_item", "row_tools"]

_ITEM_BYTES = 32


@cuda.jit(device=True, inline="always")
def head_at(number, table, heads):
    """(batch and head in one, batch, head) of a head by its number in a launch."""
    entry = uint32(number)
    if table != 0:
        entry = uint32(device.load_int32(table + 4 * number))
    # 32 bits without sign: a division of 64 takes 100 instructions, as many as a short row.
    batch = uint32(entry // uint32(heads))
    return int64(entry), int64(batch), int64(uint32(entry - uint32(batch * uint32(heads))))


@cuda.jit(device=True, inline="always")
def own_head(table, heads):
    """(number in this launch, batch and head in one, batch, head) of a block; `table` is 0 or lists them.

    Blocks of one head follow each other, so what they read of K and V stays in the second-level cache.
    """
    number = int64(cuda.blockIdx.z) * cuda.gridDim.y + cuda.blockIdx.y
    entry, batch, head = head_at(number, table, heads)
    return number, entry, batch, head


@cuda.jit(device=True, inline="always")
def item_at(items, block, warps):
    """(lane, warp, row, begin, count, slot) of a warp, for the block of a schedule.

    The number of the warp and its count pass through a shuffle, which tells the compiler that they are the
    same in all lanes. Without that it guards every later shuffle against divergence, and loads are no
    longer moved across these guards: 20 instead of 34 Gpair/s (float16, d 64, random graph).
    """
    lane = int32(cuda.threadIdx.x & 31)
    warp = device.from_lane(int32(cuda.threadIdx.x >> 5), 0)
    item = items + _ITEM_BYTES * (block * warps + warp)
    row, begin = device.load_int64(item), device.load_int64(item + 8)
    count = device.from_lane(int32(device.load_int64(item + 16)), 0)
    return lane, warp, row, begin, count, device.load_int64(item + 24)


@cuda.jit(device=True, inline="always")
def own_item(items, warps):
    """(lane, warp, row, begin, count, slot) of a warp."""
    return item_at(items, int64(cuda.blockIdx.x), warps)


class RowTools(NamedTuple):
    """Device functions for one layout of lanes; see :func:`row_tools`."""

    lane_address: Callable[..., Any]
    load_row: Callable[..., Any]
    store_row: Callable[..., Any]
    sum_over_key: Callable[..., Any]
    sum_over_places: Callable[..., Any]


@functools.cache
def row_tools(kind: str, sharing: int, chunk: int, aligned: bool, exact: bool) -> RowTools:
    """Device functions for `sharing` lanes a row, each with every `sharing`-th chunk of `chunk` elements."""
    real = float64 if kind == "float64" else float32
    load_chunk, load_element = device.load_chunk(kind), device.load_element(kind)
    store_chunk, store_element = device.store_chunk(kind), device.store_element(kind)
    xor_lane = device.xor_lane

    @cuda.jit(device=True, inline="always")
    def lane_address(address, part):
        """Where a lane begins to read a row, if it reads whole chunks."""
        return address + 16 * part if aligned else address

    @cuda.jit(device=True, inline="always")
    def load_row(address, column_stride, part, chunks, size, target, offset):
        """This lane's chunks of a row of `size` elements; what lies beyond the row is 0."""
        for c in range(chunks):
            element = int32(int32(part + c * sharing) * chunk)
            if aligned and exact:
                load_chunk(address + c * sharing * 16, target, offset + c * chunk)
            elif aligned:
                # The load is made in any case, from the row's start if need be: loads inside of a branch
                # are waited for one by one.
                inside = element < size
                load_chunk(address + (c * sharing * 16 if inside else -16 * part), target, offset + c * chunk)
                for e in range(chunk):
                    loaded = target[offset + c * chunk + e]
                    target[offset + c * chunk + e] = loaded if inside else real(0.0)
            else:
                for e in range(chunk):
                    if element + e < size:
                        target[offset + c * chunk + e] = load_element(address + (element + e) * column_stride)
                    else:
                        target[offset + c * chunk + e] = real(0.0)

    @cuda.jit(device=True, inline="always")
    def store_row(address, column_stride, part, chunks, size, source):
        """Write this lane's chunks of a row, rounded to its element type."""
        for c in range(chunks):
            element = int32(int32(part + c * sharing) * chunk)
            if aligned:
                if element < size:
                    store_chunk(address + c * sharing * 16, source, c * chunk)
            else:
                for e in range(chunk):
                    if element + e < size:
                        store_element(address + (element + e) * column_stride, source[c * chunk + e])

    @cuda.jit(device=True, inline="always")
    def sum_over_key(values, count):
        """Sums over the lanes that share a key, in every one of them."""
        distance = sharing >> 1
        while distance > 0:
            for s in range(count):
                values[s] += xor_lane(values[s], distance)
            distance >>= 1

    @cuda.jit(device=True, inline="always")
    def sum_over_places(values, count):
        """Sums over the lanes that hold the same columns of different keys, in every one of them."""
        distance = sharing
        while distance < 32:
            for e in range(count):
                values[e] += xor_lane(values[e], distance)
            distance <<= 1

    return RowTools(lane_address, load_row, store_row, sum_over_key, sum_over_places)
