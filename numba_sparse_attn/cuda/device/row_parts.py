"""Parts of a tile row: what a block that has some of its tiles leaves for the kernel that merges.

A slot has for each of 128 rows ``width`` sums of weighted values, the largest score, and the sum of weights,
all float32. The largest score is kept as it is, without the factor: their product would be rounded, and with
large scores that shows when parts are weighed against one another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from numba import cuda, int32, int64

from . import lanes

__all__ = ["part_writer", "row_bytes"]


def row_bytes(width: int) -> int:
    """Bytes of a row of a slot."""
    return 4 * (width + 2)


@functools.cache
def part_writer(width: int) -> Callable[..., None]:
    """Device function ``(parts, slot, row, lane, sums, upper, lower, upper_sum, lower_sum)``.

    Sums, maxima and sums of weights lie in registers as ``tile_softmax.py`` has them, of the rows `row` and
    `row` + 8; the sums of weights are those of the whole quad.
    """
    stride = row_bytes(width)
    quads = width // 8
    store = lanes.store_element("float32")

    @cuda.jit(device=True, inline="always")
    def write(parts, slot, row, lane, sums, upper, lower, upper_sum, lower_sum):
        upper_at = parts + (int64(slot) * 128 + row) * stride
        lower_at = upper_at + 8 * stride
        pair = int32(8 * (lane & 3))
        for i in range(quads):
            store(upper_at + 32 * i + pair, sums[4 * i])
            store(upper_at + 32 * i + pair + 4, sums[4 * i + 1])
            store(lower_at + 32 * i + pair, sums[4 * i + 2])
            store(lower_at + 32 * i + pair + 4, sums[4 * i + 3])
        if lane & 3 == 0:
            store(upper_at + 4 * width, upper)
            store(upper_at + 4 * width + 4, upper_sum)
            store(lower_at + 4 * width, lower)
            store(lower_at + 4 * width + 4, lower_sum)

    return write
