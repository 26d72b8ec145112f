"""Products of every row of one set with every row of another: scores of some rows of all heads in one launch.

A block of ``SIDE * SIDE / 16`` threads computes a square of scores, 16 to a thread, from strips of both sets
in shared memory, in the accumulator type. Squares that no row may look at are left as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from numba import cuda, float32, float64, int32, int64, types

from ..device.lanes import load_element, store_element
from ..device.rows import own_head
from .rows import ROWS_ARGUMENTS, limit_of, rows_of_head

__all__ = ["PRODUCTS_SIGNATURE", "ProductsShape", "make_products"]

PRODUCTS_SIGNATURE = types.void(
    *[types.int64] * ROWS_ARGUMENTS,  # left
    *[types.int64] * ROWS_ARGUMENTS,  # right
    *[types.int64] * 4,  # entries (heads of all batch elements), heads of one, heads to a right set, width
    *[types.int64] * 3,  # rows of the left set that are wanted: the first, how many; rows of the right set
    *[types.int64] * 6,  # limits
    types.float64,  # factor on scores
    types.int64,  # scores, contiguous: [entries, rows that are wanted, rows of the right set]
)

#: Rows of either set and columns of both that a thread has at a time, and columns of a strip.
_EACH, _STRIP = 4, 16


class ProductsShape(NamedTuple):
    """Compile-time numbers of the kernel.

    Attributes
    ----------
    left, right : str
        Types of the elements.
    side : int
        Of the square of a block: 64, or 16 where threads are dear.
    """

    left: str
    right: str
    side: int = 64

    @property
    def threads(self) -> int:
        """Of a block."""
        return (self.side // _EACH) ** 2


@functools.cache
def make_products(shape: ProductsShape) -> Callable[..., None]:
    """The kernel's Python source."""
    side, threads = shape.side, shape.threads
    kind = "float64" if "float64" in (shape.left, shape.right) else "float32"
    real = float64 if kind == "float64" else float32
    size = 8 if kind == "float64" else 4
    load_left, load_right = load_element(shape.left), load_element(shape.right)
    store = store_element(kind)
    each, strip_width = _EACH, _STRIP
    scores = each * each
    across = side // each  # threads
    # One more than the side: lanes that write a column meet different banks.
    pitch = side + 1
    room = strip_width * pitch
    rounds = side * strip_width // threads

    def kernel(
        left_address, left_table, left_batch, left_head, left_row, left_column,
        right_address, right_table, right_batch, right_head, right_row, right_column,
        entries, heads, group, width, first_row, rows, columns,
        queries, per_row, offset, extra, divisor, most, factor, target,
    ):  # fmt: skip
        number, _, batch, head = own_head(int64(0), heads)
        if number >= entries:
            return
        squares = (columns + side - 1) // side
        square_row = int64(cuda.blockIdx.x) // squares
        row, column = square_row * side, (int64(cuda.blockIdx.x) - square_row * squares) * side
        last = first_row + min(row + side, rows) - 1
        if column >= limit_of(last, queries, per_row, offset, extra, divisor, most):
            return
        left = rows_of_head(left_address, left_table, left_batch, left_head, batch, head)
        right = rows_of_head(right_address, right_table, right_batch, right_head, batch, head // group)
        strip_left = cuda.shared.array(room, real)
        strip_right = cuda.shared.array(room, real)  # the simulator knows them by their lines
        sums = cuda.local.array(scores, real)
        mine = cuda.local.array(each, real)
        theirs = cuda.local.array(each, real)
        thread = int32(cuda.threadIdx.x)
        down, over = int32(thread // across), int32(thread % across)
        for e in range(scores):
            sums[e] = real(0.0)
        strip = int64(0)
        while strip < width:
            for turn in range(rounds):
                item = turn * threads + thread
                own, at = item // strip_width, item % strip_width
                value = real(0.0)
                if row + own < rows and strip + at < width:
                    value = load_left(left + (first_row + row + own) * left_row + (strip + at) * left_column)
                strip_left[at * pitch + own] = value
                value = real(0.0)
                if column + own < columns and strip + at < width:
                    place = right + (column + own) * right_row + (strip + at) * right_column
                    value = load_right(place)
                strip_right[at * pitch + own] = value
            cuda.syncthreads()
            for at in range(strip_width):
                for e in range(each):
                    mine[e] = strip_left[at * pitch + down + e * across]
                    theirs[e] = strip_right[at * pitch + over + e * across]
                for e in range(each):
                    for f in range(each):
                        sums[e * each + f] += mine[e] * theirs[f]
            cuda.syncthreads()
            strip += strip_width
        for e in range(each):
            at = row + down + e * across
            for f in range(each):
                to = column + over + f * across
                if at < rows and to < columns:
                    score = real(sums[e * each + f] * real(factor))
                    store(target + size * ((number * rows + at) * columns + to), score)

    return kernel
