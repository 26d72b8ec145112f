"""How a warp reads and writes matrix rows and index lists: pieces shared by all warp kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda, float32, float64, int32, int64

from . import lanes as device

__all__ = ["RowTools", "row_tools"]


class RowTools(NamedTuple):
    """Device functions for one layout of lanes; see :func:`row_tools`."""

    load_row: Callable[..., Any]
    store_row: Callable[..., Any]
    load_columns: Callable[..., Any]
    sum_over_key: Callable[..., Any]


@functools.cache
def row_tools(kind: str, sharing: int, chunk: int, aligned: bool, exact: bool, wide: bool) -> RowTools:
    """Device functions for `sharing` lanes a row, each with every `sharing`-th chunk of `chunk` elements."""
    element_bytes = 16 // chunk
    real = float64 if kind == "float64" else float32
    load_chunk, load_element = device.load_chunk(kind), device.load_element(kind)
    store_chunk, store_element = device.store_chunk(kind), device.store_element(kind)
    xor_lane = device.xor_lane

    @cuda.jit(device=True, inline="always")
    def load_row(address, column_stride, part, chunks, size, target, offset):
        """This lane's chunks of a row of `size` elements; what lies beyond the row is 0."""
        for c in range(chunks):
            element = (part + c * sharing) * chunk
            if aligned and exact:
                load_chunk(address + element * element_bytes, target, offset + c * chunk)
            elif aligned:
                # The load is made in any case, from the row's start if need be: loads inside of a branch
                # are waited for one by one (21 instead of 32 Gpair/s, float16, d 64, random graph).
                inside = element < size
                load_chunk(address + (element if inside else 0) * element_bytes, target, offset + c * chunk)
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
            element = (part + c * sharing) * chunk
            if aligned:
                if element < size:
                    store_chunk(address + element * element_bytes, source, c * chunk)
            else:
                for e in range(chunk):
                    if element + e < size:
                        store_element(address + (element + e) * column_stride, source[c * chunk + e])

    load_index = device.load_int64 if wide else device.load_int32
    index_bytes = 8 if wide else 4
    index = int64 if wide else int32

    @cuda.jit(device=True, inline="always")
    def load_columns(indices, first, end, lane, count):
        """One index a lane for the next `count`; lanes beyond the list get 0, which is only ever loaded."""
        column = index(0)
        if lane < count and first + lane < end:
            column = load_index(indices + index_bytes * (first + lane))
        return column

    @cuda.jit(device=True, inline="always")
    def sum_over_key(value):
        """Sum over the lanes that share a key, in every one of them."""
        distance = sharing >> 1
        while distance > 0:
            value += xor_lane(value, distance)
            distance >>= 1
        return value

    return RowTools(load_row, store_row, load_columns, sum_over_key)
