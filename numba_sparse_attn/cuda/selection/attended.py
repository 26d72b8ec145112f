"""What scores become where a choice follows attention: weights, and sums of these by blocks or by lines."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

from numba import cuda, float32, float64, int32, int64, types

from ..device.lanes import load_element, load_written, store_element, xor_lane
from ..device.rows import own_head
from .rows import limit_of

__all__ = [
    "LINES_SIGNATURE",
    "MASSES_SIGNATURE",
    "SUM_THREADS",
    "WEIGHTS_SIGNATURE",
    "WEIGHTS_WARPS",
    "MassesShape",
    "make_lines",
    "make_masses",
    "make_weights",
]

#: Warps, hence rows, of a block.
WEIGHTS_WARPS = 4
#: Threads of a block that adds up weights by lines, each for itself.
SUM_THREADS = 128

WEIGHTS_SIGNATURE = types.void(
    types.int64,  # scores, contiguous: [entries, rows, columns]
    *[types.int64] * 4,  # entries, the first row, rows, columns
    *[types.int64] * 6,  # limits
)

MASSES_SIGNATURE = types.void(
    *[types.int64]
    * 2,  # weights, contiguous: [entries * group, queries, columns]; sums: [entries, rows, blocks]
    *[types.int64] * 2,  # entries (key heads of all batch elements), heads to a key head
    *[types.int64] * 4,  # queries that there are, queries of a row, rows, columns
    *[types.int64] * 4,  # keys of a stretch, from one stretch to the next, keys of a block, blocks
)

LINES_SIGNATURE = types.void(
    *[types.int64] * 3,  # weights, contiguous: [entries, rows, columns]; sums by column and by distance
    *[types.int64] * 3,  # entries, rows, columns
    *[types.int64] * 2,  # the key beside which the first row stands, and how far a row looks ahead
    *[types.int64] * 2,  # whether these are the first rows, and the last
)


def _size_of(kind: str) -> int:
    return 8 if kind == "float64" else 4


@functools.cache
def make_weights(kind: str) -> Callable[..., None]:
    """Softmax in place over what each row may see, 0 beyond; one warp a row, lane l has every 32nd score.

    As on the host, a NaN score weighs nothing, and a row without scores gives 0.
    """
    real = float64 if kind == "float64" else float32
    size = _size_of(kind)
    load, store = load_written(kind), store_element(kind)

    @cuda.jit(device=True, inline="always")
    def score_at(place):
        value = load(place)
        return value if value == value else real(-math.inf)

    def kernel(
        scores, entries, first_row, rows, columns, queries, per_row, offset, extra, divisor, most
    ):  # fmt: skip
        number, _, _, _ = own_head(int64(0), int64(1))
        lane = int32(cuda.threadIdx.x & 31)
        row = int64(cuda.blockIdx.x) * WEIGHTS_WARPS + (cuda.threadIdx.x >> 5)
        if number >= entries or row >= rows:
            return
        scores += size * (number * rows + row) * columns
        limit = limit_of(first_row + row, queries, per_row, offset, extra, divisor, most)
        peak = real(-math.inf)
        column = int64(lane)
        while column < limit:
            value = score_at(scores + size * column)
            peak = value if value > peak else peak
            column += 32
        distance = 16
        while distance > 0:
            other = xor_lane(peak, distance)
            peak = other if other > peak else peak
            distance >>= 1
        total = real(0.0)
        column = int64(lane)
        while column < columns:
            weight = real(0.0)
            if column < limit and peak != real(-math.inf):
                weight = real(math.exp(score_at(scores + size * column) - peak))
            store(scores + size * column, weight)
            total += weight
            column += 32
        distance = 16
        while distance > 0:
            total += xor_lane(total, distance)
            distance >>= 1
        column = int64(lane)
        while column < limit and peak != real(-math.inf):
            store(scores + size * column, real(load(scores + size * column) / total))
            column += 32

    return kernel


class MassesShape(NamedTuple):
    """Compile-time numbers of the kernel.

    Attributes
    ----------
    kind : str
        Of the weights and their sums.
    warps : int
        That share the queries of a row.
    """

    kind: str
    warps: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.warps


@functools.cache
def make_masses(shape: MassesShape) -> Callable[..., None]:
    """For every row, which is some queries of all heads of a group, and every block of keys: the weights of
    stretches, by the share of their keys that lies in the block.

    A lane has a block of keys, a warp every so many-th query; their sums are added up in one order.
    """
    kind, warps = shape
    real = float64 if kind == "float64" else float32
    size = _size_of(kind)
    load, store = load_element(kind), store_element(kind)
    room = 32 * warps

    def kernel(
        weights, sums, entries, group, queries, per_row, rows, columns, length, stride, block, blocks
    ):  # fmt: skip
        number, _, _, _ = own_head(int64(0), int64(1))
        if number >= entries:
            return
        shared = cuda.shared.array(room, real)
        parts = (blocks + 31) // 32
        row = int64(cuda.blockIdx.x) // parts
        lane, warp = int32(cuda.threadIdx.x & 31), int32(cuda.threadIdx.x >> 5)
        own = (int64(cuda.blockIdx.x) - row * parts) * 32 + lane
        begin = own * block
        end = begin + block
        first = max(begin - length + stride, int64(0)) // stride
        last = min((end - 1) // stride, columns - 1)
        total = real(0.0)
        if own < blocks:
            for member in range(group):
                query = row * per_row + warp
                while query < min((row + 1) * per_row, queries):
                    place = weights + size * (((number * group + member) * queries + query) * columns + first)
                    for stretch in range(first, last + 1):
                        from_key = stretch * stride
                        share = min(from_key + length, end) - max(from_key, begin)
                        total += load(place) * (real(share) / real(length))
                        place += size
                    query += warps
        shared[cuda.threadIdx.x] = total
        cuda.syncthreads()
        if warp == 0 and own < blocks:
            for other in range(1, warps):
                total += shared[32 * other + lane]
            store(sums + size * ((number * rows + row) * blocks + own), total)

    return kernel


@functools.cache
def make_lines(kind: str) -> Callable[..., None]:
    """Weights added up by key, and by how far the key lies before the row's own place; one thread a sum. In
    float64: there may be as many rows as queries.

    Distance 0, which is always chosen first, gets infinity at the end.
    """
    size = _size_of(kind)
    load, load_sum, store = load_element(kind), load_written("float64"), store_element("float64")

    def kernel(
        weights, by_column, by_distance, entries, rows, columns, place, ahead, fresh, complete
    ):  # fmt: skip
        number, _, _, _ = own_head(int64(0), int64(1))
        item = int64(cuda.blockIdx.x) * SUM_THREADS + cuda.threadIdx.x
        if number >= entries or item >= ahead + columns:
            return
        weights += size * number * rows * columns
        if item < columns:
            target = by_column + 8 * (number * columns + item)
            total = float64(0.0)
            if fresh == 0:
                total = load_sum(target)
            for row in range(rows):
                total += float64(load(weights + size * (row * columns + item)))
            store(target, total)
        target = by_distance + 8 * (number * (ahead + columns) + item)
        total = float64(0.0)
        if fresh == 0:
            total = load_sum(target)
        for row in range(rows):
            column = place + row - (item - ahead)
            if 0 <= column and column < columns:
                total += float64(load(weights + size * (row * columns + column)))
        if complete != 0 and item == ahead:
            total = float64(math.inf)
        store(target, total)

    return kernel
