"""Rows of 16-bit elements in shared memory: how they get there, where fragments are in them, how they leave.

A row is a whole number of lines of 128 bytes, and its piece p of 16 bytes lies where piece p ^ (row % 8)
would: the 8 rows of a matrix that one instruction loads lie in different banks, and so do the 8 pieces of a
line that 8 threads copy. Rows begin at multiples of 128.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda, float32, int32, int64

from . import fragments, lanes

__all__ = ["SharedRowTools", "lane_offset", "pieces_at", "row_tools"]


@cuda.jit(device=True, inline="always")
def lane_offset(stride):
    """Where in 16 rows the address of a lane is, whatever is loaded: a piece of every row, then the next."""
    lane = int32(fragments.own_thread() & 31)
    return int32((lane & 15) * stride + (((lane >> 4) ^ (lane & 7)) << 4))


@cuda.jit(device=True, inline="always")
def pieces_at(rows, number):
    """A lane's address for pieces 2 * `number` and the next, from that for 0."""
    return fragments.place_of(fragments.place_of(rows ^ ((number & 3) << 5)) + ((number >> 2) << 7))


class SharedRowTools(NamedTuple):
    """Device functions; see :func:`row_tools`."""

    own_piece: Callable[..., Any]
    copy_rows: Callable[..., Any]
    store_rows: Callable[..., Any]


@functools.cache
def row_tools(kind: str, width: int, threads: int, row_bytes: int) -> SharedRowTools:
    """Device functions for a block of `threads` threads, and for results of `width` in rows of `row_bytes`.

    ``own_piece(source, row_stride)``: what of a matrix the calling thread copies first;
    ``copy_rows(target, source, home, row_stride, rows, pieces, target_row, present, size)``: queue copies of
    `rows` rows, of which `present` exist, from a thread's `source`, each of `size` bytes of 16 * `pieces`;
    what does not exist becomes 0, and `home` is where no bytes of it are read from;
    ``store_rows(sums, upper_inverse, lower_inverse, rows, target, out_row, present, value_dim)``: a warp's
    results, 16 rows, `present` of which exist, through the part `rows` of shared memory that is its own.
    """
    rows_a_pass = threads // 8
    some_lines = -(-width // 64)
    place_of, own_thread = fragments.place_of, fragments.own_thread
    sync_warp, store_word, pack_two = (
        fragments.sync_warp,
        fragments.store_shared_int32,
        fragments.pack_pair(kind),
    )
    copy_chunk, load_shared = lanes.copy_chunk, lanes.load_shared_chunk(kind)
    store_chunk, store_element = lanes.store_chunk(kind), lanes.store_element(kind)

    @cuda.jit(device=True, inline="always")
    def own_piece(source, row_stride):
        thread = int32(cuda.threadIdx.x)
        return source + int64(thread >> 3) * row_stride + 16 * (thread & 7)

    @cuda.jit(device=True, inline="always")
    def copy_rows(target, source, home, row_stride, rows, pieces, target_row, present, size):
        thread = int32(own_thread())
        row, piece = int32(thread >> 3), int32(thread & 7)
        place = place_of(target + row * target_row + ((piece ^ (row & 7)) << 4))
        address = source
        for turn in range(rows // rows_a_pass):
            inside = size if int32(row + turn * rows_a_pass) < present else int32(0)
            for line in range((pieces + 7) // 8):
                if 8 * line + 8 <= pieces or piece < pieces - 8 * line:
                    wanted = int32(min(max(inside - 16 * (piece + 8 * line), 0), 16))
                    copy_chunk(
                        place + (turn * rows_a_pass * target_row + 128 * line),
                        address + 128 * line if wanted > 0 else home,
                        wanted,
                    )
            address += rows_a_pass * row_stride

    @cuda.jit(device=True, inline="always")
    def store_rows(sums, upper_inverse, lower_inverse, rows, target, out_row, present, value_dim):
        lane = int32(cuda.threadIdx.x & 31)
        group = int32(lane >> 2)
        upper = place_of(rows + group * row_bytes + 4 * (lane & 3))
        for i in range(width // 8):
            offset = ((i >> 3) << 7) + (((i & 7) ^ group) << 4)
            store_word(
                place_of(upper + offset),
                pack_two(sums[4 * i] * upper_inverse, sums[4 * i + 1] * upper_inverse),
            )
            store_word(
                place_of(upper + offset + 8 * row_bytes),
                pack_two(sums[4 * i + 2] * lower_inverse, sums[4 * i + 3] * lower_inverse),
            )
        sync_warp()
        piece = int32(lane & 7)
        values = cuda.local.array(8, float32)
        for turn in range(4):
            row = int32((lane >> 3) + 4 * turn)
            for line in range(some_lines):
                first = int32(8 * piece + 64 * line)
                if row < present and first < value_dim:
                    load_shared(rows + (row * row_bytes + 128 * line + ((piece ^ (row & 7)) << 4)), values, 0)
                    address = target + row * out_row + 2 * first
                    if first + 8 <= value_dim:
                        store_chunk(address, values, 0)
                    else:
                        for i in range(8):
                            if first + i < value_dim:
                                store_element(address + 2 * i, values[i])

    return SharedRowTools(own_piece, copy_rows, store_rows)
