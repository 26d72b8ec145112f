"""Parts of a tile row: what a block that has some of its tiles leaves for the kernel that merges.

A slot has 128 rows of float32. Of the forward pass, a row is ``width`` sums of weighted values, the largest
score, and the sum of weights. The largest score is kept as it is, without the factor: their product would be
rounded, and with large scores that shows when parts are weighed against one another. Of the backward pass, it
is the sums of the first gradient and those of the second, as far as a kernel makes them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from numba import cuda, int32, int64

from . import lanes

__all__ = ["gradient_row_bytes", "part_writer", "row_bytes", "sums_writer"]


def row_bytes(width: int) -> int:
    """Bytes of a row of a slot of the forward pass."""
    return 4 * (width + 2)


def gradient_row_bytes(depth: int, width: int, *, first: bool, second: bool) -> int:
    """Bytes of a row of a slot of the backward pass."""
    return 4 * ((depth if first else 0) + (width if second else 0))


@functools.cache
def sums_writer(width: int, stride: int) -> Callable[..., None]:
    """Device function ``(upper_at, lane, sums)``: sums in registers as ``tile_softmax.py`` has them, of the
    row at `upper_at` and of the one 8 rows of `stride` bytes further on.
    """
    quads = width // 8
    store = lanes.store_element("float32")

    @cuda.jit(device=True, inline="always")
    def write(upper_at, lane, sums):
        lower_at = upper_at + 8 * stride
        pair = int32(8 * (lane & 3))
        for i in range(quads):
            store(upper_at + 32 * i + pair, sums[4 * i])
            store(upper_at + 32 * i + pair + 4, sums[4 * i + 1])
            store(lower_at + 32 * i + pair, sums[4 * i + 2])
            store(lower_at + 32 * i + pair + 4, sums[4 * i + 3])

    return write


@functools.cache
def part_writer(width: int) -> Callable[..., None]:
    """Device function ``(parts, slot, row, lane, sums, upper, lower, upper_sum, lower_sum)``.

    Of the rows `row` and `row` + 8; the sums of weights are those of the whole quad.
    """
    stride = row_bytes(width)
    store = lanes.store_element("float32")
    write_sums = sums_writer(width, stride)

    @cuda.jit(device=True, inline="always")
    def write(parts, slot, row, lane, sums, upper, lower, upper_sum, lower_sum):
        upper_at = parts + (int64(slot) * 128 + row) * stride
        write_sums(upper_at, lane, sums)
        if lane & 3 == 0:
            lower_at = upper_at + 8 * stride
            store(upper_at + 4 * width, upper)
            store(upper_at + 4 * width + 4, upper_sum)
            store(lower_at + 4 * width, lower)
            store(lower_at + 4 * width + 4, lower_sum)

    return write
