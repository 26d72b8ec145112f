"""Means and extremes of the tokens of a stretch, of all heads in one launch.

A block of threads has one stretch of one head. Groups of lanes read a row each, in words of 16 bytes where
rows consist of such, and take every ``groups``-th row; their parts are put together in shared memory in the
order of the groups, so that sums have one order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

from numba import cuda, float32, float64, int32, int64, types

from ..device.lanes import load_chunk, load_element, store_element
from ..device.rows import own_head
from .rows import ROWS_ARGUMENTS, rows_of_head

__all__ = ["BLOCKS_SIGNATURE", "BLOCKS_THREADS", "BlocksShape", "blocks_shape", "make_blocks"]

BLOCKS_THREADS = 128
WORD_BYTES = 16

BLOCKS_SIGNATURE = types.void(
    *[types.int64] * ROWS_ARGUMENTS,
    *[types.int64] * 4,  # entries (heads of all batch elements), heads of one, rows, elements of a row
    *[types.int64] * 3,  # tokens of a stretch, from one stretch to the next, stretches
    types.int64,  # results, contiguous: [entries, stretches, width], or twice the width
)


class BlocksShape(NamedTuple):
    """Compile-time numbers of the kernel.

    Attributes
    ----------
    kind, result : str
        Types of the elements that are read and written.
    what : {"means", "extremes", "sides"}
        Extremes are maxima and then minima; sides are means of what is above 0, the rest counting as 0, and
        then of what is below.
    words : bool
        Whether rows are read in words of 16 bytes.
    lanes : int
        Threads of a row, a power of two; wider rows are gone through in parts.
    """

    kind: str
    result: str
    what: str
    words: bool
    lanes: int


def blocks_shape(kind: str, itemsize: int, width: int, result: str, *, what: str, words: bool) -> BlocksShape:
    """The shape for rows of a type and width.

    Examples
    --------
    >>> blocks_shape("float16", 2, 128, "float32", what="means", words=True).lanes
    16
    """
    parts = -(-width * itemsize // WORD_BYTES) if words else width
    lanes = min(BLOCKS_THREADS, 1 << max(parts - 1, 0).bit_length())
    return BlocksShape(kind, result, what, words, lanes)


@functools.cache
def make_blocks(shape: BlocksShape) -> Callable[..., None]:
    """The kernel's Python source."""
    kind, result, what, words, lanes = shape
    extremes, sides = what == "extremes", what == "sides"
    twice = 1 if what == "means" else 2
    real = float64 if kind == "float64" else float32
    size = {"float64": 8, "float32": 4}.get(kind, 2)
    result_size = {"float64": 8, "float32": 4}.get(result, 2)
    chunk = WORD_BYTES // size if words else 1
    room = chunk * twice
    groups = BLOCKS_THREADS // lanes
    shift = lanes.bit_length() - 1
    shared_room = BLOCKS_THREADS * room
    store = store_element(result)
    low = -math.inf if extremes else 0.0
    if words:
        load = load_chunk(kind)
    else:
        load_one = load_element(kind)

        @cuda.jit(device=True, inline="always")
        def load(address, target, offset):
            target[offset] = load_one(address)

    @cuda.jit(device=True, inline="always")
    def larger(value, other):
        """NaN is larger than anything, and stays."""
        return other if other > value or other != other else value

    @cuda.jit(device=True, inline="always")
    def smaller(value, other):
        """NaN is smaller than anything, and stays."""
        return other if other < value or other != other else value

    def kernel(
        address, table, batch_stride, head_stride, row_stride, column_stride,
        entries, heads, rows, width, length, step, stretches, target,
    ):  # fmt: skip
        number, _, batch, head = own_head(int64(0), heads)
        if number >= entries:
            return
        block = int64(cuda.blockIdx.x)
        thread = int32(cuda.threadIdx.x)
        lane, group = int32(thread & (lanes - 1)), int32(thread >> shift)
        source = rows_of_head(address, table, batch_stride, head_stride, batch, head)
        begin = block * step
        end = min(begin + length, rows)
        shared = cuda.shared.array(shared_room, real)
        parts = cuda.local.array(room, real)
        taken = cuda.local.array(chunk, real)
        first = int64(0)
        while first < width:
            column = first + lane * chunk
            for e in range(chunk):
                parts[e] = real(low)
                if twice == 2:
                    parts[chunk + e] = real(-low)
            if column < width:
                row = begin + group
                place = source + row * row_stride + column * column_stride
                while row < end:
                    load(place, taken, 0)
                    for e in range(chunk):
                        if extremes:
                            parts[e] = larger(parts[e], taken[e])
                            parts[chunk + e] = smaller(parts[chunk + e], taken[e])
                        elif sides:  # NaN is on both
                            parts[e] += real(0.0) if taken[e] < real(0.0) else taken[e]
                            parts[chunk + e] += real(0.0) if taken[e] > real(0.0) else taken[e]
                        else:
                            parts[e] += taken[e]
                    row += groups
                    place += groups * row_stride
            for e in range(room):
                shared[e * BLOCKS_THREADS + thread] = parts[e]
            cuda.syncthreads()
            if group == 0 and column < width:
                for other in range(1, groups):
                    for e in range(room):
                        value = shared[e * BLOCKS_THREADS + other * lanes + lane]
                        if extremes:
                            parts[e] = larger(parts[e], value) if e < chunk else smaller(parts[e], value)
                        else:
                            parts[e] += value
                count = real(1.0) if extremes else real(end - begin)
                place = target + result_size * ((number * stretches + block) * twice * width + column)
                for e in range(chunk):
                    store(place + result_size * e, real(parts[e] / count))
                    if twice == 2:
                        store(place + result_size * (width + e), real(parts[chunk + e] / count))
            cuda.syncthreads()
            first += lanes * chunk

    return kernel
