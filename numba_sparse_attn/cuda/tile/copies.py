"""Copies between an array with any strides and one that the copy engine can read; a warp a row."""

from __future__ import annotations

import functools
from collections.abc import Callable

from numba import cuda, int64, types

from ..device.lanes import load_element, store_element

__all__ = ["COPY_SIGNATURE", "COPY_THREADS", "make_copy"]

COPY_THREADS = 128
_WARPS = COPY_THREADS // 32

COPY_SIGNATURE = types.void(
    *[types.int64] * 2,  # source, target
    *[types.int64] * 4,  # rows of all heads, heads, rows of a head, columns
    *[types.int64] * 8,  # (batch, head, row, column) strides of either, in bytes
)


@functools.cache
def make_copy(kind: str) -> Callable[..., None]:
    """The kernel's Python source for elements of `kind`."""
    load, store = load_element(kind), store_element(kind)

    def kernel(
        source, target, every_row, heads, rows, columns,
        source_batch, source_head, source_row, source_column,
        target_batch, target_head, target_row, target_column,
    ):  # fmt: skip
        number = int64(cuda.blockIdx.x) * _WARPS + (cuda.threadIdx.x >> 5)
        if number >= every_row:
            return
        entry = number // rows
        row = number - entry * rows
        batch = entry // heads
        head = entry - batch * heads
        source += batch * source_batch + head * source_head + row * source_row
        target += batch * target_batch + head * target_head + row * target_row
        column = int64(cuda.threadIdx.x & 31)
        while column < columns:
            store(target + column * target_column, load(source + column * source_column))
            column += 32

    return kernel
