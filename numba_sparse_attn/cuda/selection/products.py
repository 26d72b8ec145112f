"""Products of every row of one set with every row of another: scores of some rows of all heads in one launch.

A block of threads computes a square of scores, 64 to a thread or 16, from strips of both sets in shared
memory, in the accumulator type. Squares that no row may look at are left as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from numba import cuda, float32, float64, int32, int64, types

from ..device.lanes import load_element, store_element
from ..device.rows import own_head
from .rows import ROWS_ARGUMENTS, limit_of, rows_of_head

__all__ = ["PRODUCTS_SIGNATURE", "ProductsShape", "make_products", "products_shape"]

PRODUCTS_SIGNATURE = types.void(
    *[types.int64] * ROWS_ARGUMENTS,  # left
    *[types.int64] * ROWS_ARGUMENTS,  # right
    *[types.int64] * 4,  # entries (heads of all batch elements), heads of one, heads to a right set, width
    *[types.int64] * 3,  # rows of the left set that are wanted: the first, how many; rows of the right set
    *[types.int64] * 6,  # limits
    types.float64,  # factor on scores
    types.int64,  # scores, contiguous: [entries, rows that are wanted, rows of the right set]
)

#: Columns of a strip.
_STRIP = 16


class ProductsShape(NamedTuple):
    """Compile-time numbers of the kernel.

    Attributes
    ----------
    left, right : str
        Types of the elements.
    side : int
        Of the square of a block.
    each : int
        Rows of either set that a thread has. With 8 it reads 16 numbers from shared memory for 64 products,
        which keeps both busy; with 4 twice as many.
    """

    left: str
    right: str
    side: int
    each: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return (self.side // self.each) ** 2

    @property
    def resident(self) -> int:
        """Blocks that should fit a multiprocessor at a time: one loads while the other multiplies."""
        return 2


def products_shape(left: str, right: str) -> ProductsShape:
    """The shape for sets of these types: sums of float64 take twice the registers.

    Examples
    --------
    >>> products_shape("float16", "float32").threads
    256
    """
    return ProductsShape(left, right, *((64, 4) if "float64" in (left, right) else (128, 8)))


@functools.cache
def make_products(shape: ProductsShape) -> Callable[..., None]:
    """The kernel's Python source."""
    side, threads = shape.side, shape.threads
    kind = "float64" if "float64" in (shape.left, shape.right) else "float32"
    real = float64 if kind == "float64" else float32
    size = 8 if kind == "float64" else 4
    load_left, load_right = load_element(shape.left), load_element(shape.right)
    store = store_element(kind)
    each, strip_width = shape.each, _STRIP
    scores = each * each
    across = side // each  # threads
    # One more than the side: lanes that write a column meet different banks.
    pitch = side + 1
    room = strip_width * pitch
    apart = threads // strip_width
    rounds = side // apart

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
        # Of a strip a thread reads one column, in every `apart`-th row.
        own, at = int32(thread // strip_width), int32(thread % strip_width)
        from_left = left + (first_row + row + own) * left_row + at * left_column
        from_right = right + (column + own) * right_row + at * right_column
        for e in range(scores):
            sums[e] = real(0.0)
        strip = int64(0)
        while strip < width:
            place, other = from_left, from_right
            for turn in range(rounds):
                value = real(0.0)
                if row + own + turn * apart < rows and strip + at < width:
                    value = load_left(place)
                strip_left[at * pitch + own + turn * apart] = value
                value = real(0.0)
                if column + own + turn * apart < columns and strip + at < width:
                    value = load_right(other)
                strip_right[at * pitch + own + turn * apart] = value
                place += apart * left_row
                other += apart * right_row
            from_left += strip_width * left_column
            from_right += strip_width * right_column
            cuda.syncthreads()
            for k in range(strip_width):
                for e in range(each):
                    mine[e] = strip_left[k * pitch + down + e * across]
                    theirs[e] = strip_right[k * pitch + over + e * across]
                for e in range(each):
                    for f in range(each):
                        sums[e * each + f] += mine[e] * theirs[f]
            cuda.syncthreads()
            strip += strip_width
        place = target + size * ((number * rows + row + down) * columns + column + over)
        for e in range(each):
            for f in range(each):
                if row + down + e * across < rows and column + over + f * across < columns:
                    store(place + size * across * f, real(sums[e * each + f] * real(factor)))
            place += size * across * columns

    return kernel
