"""Rows of all heads copied by number, into an order or back; as 16-byte words where they can be.

A row is copied by the next power of two of lanes that have a word each, and every thread has several rows on
their way at once: a row number has to come before the row it names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from numba import cuda, float32, float64, int32, int64, types

from ..device.lanes import load_chunk, load_element, load_int32, load_int64, store_chunk, store_element
from ..device.rows import own_head

__all__ = ["MOVE_SIGNATURE", "MOVE_THREADS", "RowShape", "make_move", "row_shape"]

MOVE_THREADS = 128
#: Rows that a thread has on their way.
_STEPS = 4
_WORD_BYTES = 16

MOVE_SIGNATURE = types.void(
    *[types.int64] * 2,  # source, target
    *[types.int64] * 2,  # row numbers of all heads, or a table of such lists, one a head: one of them is 0
    *[types.int64] * 4,  # heads of all batch elements, heads of one, rows, words of a row
    *[types.int64] * 8,  # (batch, head, row, word) strides of either, in bytes
)


class RowShape(NamedTuple):
    """Compile-time numbers of the kernel.

    Attributes
    ----------
    kind : str
        Type of the elements; of no account to words.
    words : bool
        Whether rows are whole words of 16 bytes at addresses that are multiples of that.
    lanes : int
        Threads that share a row.
    parts : int
        Blocks that share a row, each with a word a lane.
    """

    kind: str
    words: bool
    lanes: int
    parts: int

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return MOVE_THREADS // self.lanes * _STEPS

    @property
    def word_bytes(self) -> int:
        """Size of what a thread copies at a time, for words."""
        return _WORD_BYTES


def row_shape(kind: str, row_bytes: int, itemsize: int, *, words: bool) -> tuple[RowShape, int]:
    """The shape for rows of a type and size, and how many words or elements they have."""
    count = row_bytes // (_WORD_BYTES if words else itemsize)
    lanes = min(32, 1 << max(count - 1, 0).bit_length())
    # Words are copied as they are, so one kernel does for every type.
    return RowShape("float32" if words else kind, words, lanes, max(1, -(-count // lanes))), count


@functools.cache
def make_move(shape: RowShape) -> Callable[..., None]:
    """The kernel's Python source."""
    kind, words, lanes, parts = shape
    size = 4 if words else 1  # values that a thread has of a row at a time
    room = _STEPS * size
    real = float64 if kind == "float64" else float32
    step_rows, block_rows = MOVE_THREADS // lanes, shape.rows
    shift = lanes.bit_length() - 1
    if words:
        load, store = load_chunk(kind), store_chunk(kind)
    else:
        load_one, store_one = load_element(kind), store_element(kind)

        @cuda.jit(device=True, inline="always")
        def load(address, buffer, place):
            buffer[place] = load_one(address)

        @cuda.jit(device=True, inline="always")
        def store(address, buffer, place):
            store_one(address, buffer[place])

    def kernel(
        source, target, numbers, lists, entries, heads, rows, count,
        source_batch, source_head, source_row, source_word,
        target_batch, target_head, target_row, target_word,
    ):  # fmt: skip
        number, _, batch, head = own_head(int64(0), heads)
        if number >= entries:
            return
        if lists != 0:
            numbers = load_int64(lists + 8 * number)
        # A loop over the words of a row would be unrolled, and its 222 registers leave room for few threads.
        block = int32(cuda.blockIdx.x) // parts
        thread = int32(cuda.threadIdx.x)
        word = int64((int32(cuda.blockIdx.x) - block * parts) * lanes + (thread & (lanes - 1)))
        if word >= count:
            return
        first = int64(block) * block_rows + (thread >> shift)
        source += batch * source_batch + head * source_head + word * source_word
        target += batch * target_batch + head * target_head + word * target_word
        # Behind the last row it is read again: without branches all loads are under way before one arrives.
        taken = cuda.local.array(_STEPS, int64)
        for step in range(_STEPS):
            row = min(first + step * step_rows, rows - 1)
            taken[step] = source + int64(load_int32(numbers + 4 * row)) * source_row
        buffer = cuda.local.array(room, real)
        for step in range(_STEPS):
            load(taken[step], buffer, step * size)
        for step in range(_STEPS):
            row = first + step * step_rows
            if row < rows:
                store(target + row * target_row, buffer, step * size)

    return kernel
