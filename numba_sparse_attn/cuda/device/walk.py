"""How a warp walks over the keys of its row: gathered one by one, or in runs staged for the whole block.

Most kernels read rows of two matrices together: K and V, or by keys Q and dout. The walk loads them,
``steps`` at a time, and hands them to the kernel's ``take``; it knows nothing of what is done with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda, float32, float64, int32, int64

from . import lanes as device
from .rows import row_tools

__all__ = ["Walk", "make_walk"]


class Walk(NamedTuple):
    """Device functions for one kernel; see :func:`make_walk`."""

    gather: Callable[..., Any]
    stage: Callable[..., Any]


def make_walk(shape: Any, take: Callable[..., Any]) -> Walk:
    """The two walks of a kernel.

    Parameters
    ----------
    shape : WarpShape
    take : device function (lefts, rights, rows, members, left, own)
        Uses one round: rows of the left and of the right matrix, ``steps`` of each, their numbers (and query
        heads, if indices are mixed), how many of them count, seen from this lane's place, and whatever the
        kernel passed as `own`. What lies beyond must not be used: it may be NaN. (A second version for
        rounds in which all of them count saves a tenth of the instructions and costs more in registers.)
    """
    kind, sharing, chunk, steps = shape.kind, shape.lanes, shape.chunk, shape.steps
    left_chunks, right_chunks = shape.key_chunks, shape.value_chunks
    left_words, right_words = left_chunks * chunk, right_chunks * chunk
    left_buffer = steps * left_words
    # A walk over one matrix has no right rows, but no array is empty.
    right_room = max(1, steps * right_words)
    a_step, a_round = shape.keys_a_step, shape.keys_a_round
    lane_bits = sharing.bit_length() - 1
    wide, mixed = shape.wide, shape.mixed
    real = float64 if kind == "float64" else float32
    index = int64 if wide else int32
    index_bytes = 8 if wide else 4
    load_index = device.load_int64 if wide else device.load_int32
    from_lane = device.from_lane
    lane_address, load_row, *_ = row_tools(kind, sharing, chunk, shape.aligned, shape.exact)

    @cuda.jit(device=True, inline="always")
    def times(row, stride):
        """Bytes from row 0; one instruction where both factors have 32 bits."""
        return int64(row) * (stride if wide else int64(int32(stride)))

    @cuda.jit(device=True, inline="always")
    def gather(
        left, left_head, left_row, left_column, left_size,
        right, right_head, right_row, right_column, right_size,
        length, indices, begin, count, lane, own,
    ):  # fmt: skip
        """Walk over the rows that a list of indices names."""
        part = int32(lane & (sharing - 1))
        place = int32(lane >> lane_bits)
        lefts = cuda.local.array(left_buffer, real)
        rights = cuda.local.array(right_room, real)
        rows = cuda.local.array(steps, index)
        members = cuda.local.array(steps, index)
        left_at = lane_address(left, part)
        right_at = lane_address(right, part)
        position = indices + index_bytes * (begin + lane)
        # Lanes beyond the end of the list read row 0, which is not used. The indices of the next round are
        # loaded while this one is computed: half of the latency of a round (2 to 6 %).
        column = index(0)
        if lane < a_round and lane < count:
            column = load_index(position)
        first = int32(0)
        while first < count:
            for s in range(steps):
                row = from_lane(column, int32(s * a_step + place))
                members[s] = index(0)
                if mixed:
                    members[s] = index(row // index(length))
                    row = index(row - index(members[s] * index(length)))
                rows[s] = row
            for s in range(steps):
                at = left_at + times(rows[s], left_row)
                if mixed:
                    at += int64(members[s]) * left_head
                load_row(at, left_column, part, left_chunks, left_size, lefts, s * left_words)
            for s in range(steps):
                at = right_at + times(rows[s], right_row)
                if mixed:
                    at += int64(members[s]) * right_head
                load_row(at, right_column, part, right_chunks, right_size, rights, s * right_words)
            position += index_bytes * a_round
            following = index(0)
            if lane < a_round and int32(first + a_round + lane) < count:
                following = load_index(position)
            take(lefts, rights, rows, members, int32(count - first - place), own)
            column = following
            first = int32(first + a_round)

    tile, warps, exact = shape.tile, shape.warps, shape.exact
    rows_a_pass = shape.threads // sharing
    row_bytes = shape.staged_row_bytes
    # A round may begin at the last row of a buffer and reads on: into rows of its own, since the other
    # buffer is being written meanwhile.
    buffer_bytes = (tile + a_round) * row_bytes
    shared_room = device.shared_room(2 * buffer_bytes)
    element_bytes = 16 // chunk
    right_begins = sharing * left_chunks
    load_int32, load_int64 = device.load_int32, device.load_int64
    load_shared = device.load_shared_chunk(kind)
    copy_chunk, commit, wait = device.copy_chunk, device.commit_copies, device.wait_for_copies(1)

    @cuda.jit(device=True, inline="always")
    def inside(chunk_number, size):
        """How many of a chunk's bytes lie inside of a row of `size` elements."""
        return int32(min(max(int32(int32(size) * element_bytes) - 16 * chunk_number, 0), 16))

    @cuda.jit(device=True, inline="always")
    def fetch(left, left_row, left_size, right, right_row, right_size, first, count, target):
        """Queue copies of `count` rows of both matrices to a buffer, zeros behind each."""
        thread = int32(cuda.threadIdx.x)
        part = int32(thread & (sharing - 1))
        row = int32(thread >> lane_bits)
        place = target + row * row_bytes + 16 * part
        while row < count:
            source = left + times(first + row, left_row)
            for c in range(left_chunks):
                number = int32(part + c * sharing)
                size = int32(16) if exact else inside(number, left_size)
                copy_chunk(place + c * sharing * 16, source + (16 * number if size > 0 else 0), size)
            source = right + times(first + row, right_row)
            for c in range(right_chunks):
                number = int32(part + c * sharing)
                size = int32(16) if exact else inside(number, right_size)
                copy_chunk(
                    place + (right_begins + c * sharing) * 16, source + (16 * number if size > 0 else 0), size
                )
            row = int32(row + rows_a_pass)
            place += rows_a_pass * row_bytes

    @cuda.jit(device=True, inline="always")
    def stage(left, left_row, left_size, right, right_row, right_size, spans, runs, bounds, warp, lane, own):
        """Walk over the segments of a block, all warps together, each over its own part of them."""
        part = int32(lane & (sharing - 1))
        place = int32(lane >> lane_bits)
        lefts = cuda.local.array(left_buffer, real)
        rights = cuda.local.array(right_room, real)
        rows = cuda.local.array(steps, index)
        members = cuda.local.array(steps, index)
        for s in range(steps):
            members[s] = index(0)
        room = shared_room()
        segment = load_int64(spans + 16 * int64(cuda.blockIdx.x))
        last = load_int64(spans + 16 * int64(cuda.blockIdx.x) + 8)
        first, length, offset = int64(0), int32(0), int32(0)
        low, high = int32(0), int32(0)
        side = int32(0)
        if segment < last:
            first = load_int64(runs + 16 * segment)
            length = int32(load_int64(runs + 16 * segment + 8))
            low = from_lane(load_int32(bounds + 8 * (segment * warps + warp)), 0)
            high = from_lane(load_int32(bounds + 8 * (segment * warps + warp) + 4), 0)
            fetch(left, left_row, left_size, right, right_row, right_size, first, min(length, tile), room)
        commit()
        while segment < last:
            # What comes after this tile: the next of the same run, or the first of the next run.
            next_first, next_length, next_low, next_high = first, length, low, high
            next_offset = int32(offset + tile)
            if next_offset >= length:
                segment += 1
                next_offset = int32(0)
                if segment < last:
                    next_first = load_int64(runs + 16 * segment)
                    next_length = int32(load_int64(runs + 16 * segment + 8))
                    next_low = from_lane(load_int32(bounds + 8 * (segment * warps + warp)), 0)
                    next_high = from_lane(load_int32(bounds + 8 * (segment * warps + warp) + 4), 0)
            if segment < last:
                fetch(
                    left, left_row, left_size, right, right_row, right_size, next_first + next_offset,
                    min(int32(next_length - next_offset), tile), room + (side ^ 1) * buffer_bytes,
                )  # fmt: skip
            commit()
            wait()
            cuda.syncthreads()
            begin = int32(max(low, offset))
            end = int32(min(high, int32(offset + tile)))
            at = room + side * buffer_bytes + int32(begin - offset + place) * row_bytes + 16 * part
            while begin < end:
                for s in range(steps):
                    rows[s] = index(first + begin + s * a_step + place)
                    for c in range(left_chunks):
                        load_shared(
                            at + (s * a_step * row_bytes + c * sharing * 16),
                            lefts,
                            s * left_words + c * chunk,
                        )
                for s in range(steps):
                    for c in range(right_chunks):
                        load_shared(
                            at + (s * a_step * row_bytes + (right_begins + c * sharing) * 16),
                            rights,
                            s * right_words + c * chunk,
                        )
                take(lefts, rights, rows, members, int32(end - begin - place), own)
                begin = int32(begin + a_round)
                at += a_round * row_bytes
            cuda.syncthreads()  # before the next copies overwrite what was read
            first, length, offset, low, high = next_first, next_length, next_offset, next_low, next_high
            side = int32(side ^ 1)

    return Walk(gather, stage)
