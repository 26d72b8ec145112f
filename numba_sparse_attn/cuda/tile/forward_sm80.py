"""Forward pass with mma.sync and cp.async, for GPUs without wgmma: a block has a tile row of 128 queries.

Every warp has 16 or 32 rows of its own, from their scores to their results. Keys of a step and then its
values pass through a ring of buffers in shared memory, filled by all threads; a warp loads them as fragments.
The buffer that everyone has done with is refilled while the next ones are worked on, so there is one barrier
for a step's keys and one for its values.

Keys beyond the last, and columns beyond the head dimension, are filled with zeros; masks have no bits there.
Queries beyond the last are zeros, too, and their results are not stored.

Work is a list of items, int64 (entry << 32 | tile row, tiles, address of their list, address of the masks in
lane order, and two that are for others), one for each block, longest first: a multiprocessor that has done
with one takes the next. A tile list is of int32 pairs (column, mask); entry is batch * heads + head.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from numba import cuda, float32, int32, int64, types

from ...formats.tiles import FULL, TILE
from ..device import fragments, lanes
from ..device.exact_rows import exact_row
from ..device.row_results import result_tools
from ..device.shared_rows import lane_offset, row_tools
from ..device.tile_changes import tile_change_tools
from ..device.tile_products import left_loader, product_with_columns, product_with_rows, right_count
from ..device.tile_softmax import softmax_tools
from .dealing import WORK_BYTES
from .shape import MASK_BYTES
from .shape_sm80 import FragmentShape

__all__ = ["FORWARD_SIGNATURE", "make_forward"]

FORWARD_SIGNATURE = types.void(
    *[types.int64] * 2,  # work, lse (0: not wanted), contiguous
    *[types.int32] * 6,  # heads, group, n_q, n_k, head_dim, value_dim
    *[types.int64] * 4,  # q, k, v, out
    *[types.int64] * 12,  # (batch, head, row) strides of q, k, v, out in bytes, multiples of 16
    types.float32,  # abs(scale) * log2(e)
    types.int64,  # settings of changes (0: none)
)


@functools.cache
def make_forward(shape: FragmentShape) -> Callable[..., None]:
    """The kernel's Python source, closed over compile-time numbers (compiled by ``launch.py``)."""
    kind, masked, negate = shape.kind, shape.masked, shape.negate
    row_tiles, keys, threads, queries_stay = shape.row_tiles, shape.keys, shape.threads, shape.queries_stay
    query_row, key_row, value_row = shape.query_row, shape.key_row, shape.value_row
    ring_at, buffer_bytes, buffers = shape.ring_at, shape.buffer, shape.buffers
    steps_a_tile, width = shape.steps, shape.width
    step_bits = steps_a_tile.bit_length() - 1
    #: Elements of the sequence keys, values, keys, ... that are under way while one is worked on.
    ahead = buffers - 1
    key_pieces, value_pieces = shape.depth // 8, width // 8
    score_count, sum_count, weight_count = keys // 2, width // 2, keys // 4
    # The second 16 rows of a warp, if it has them.
    more_score_count, more_sum_count, more_weight_count = (
        (score_count, sum_count, weight_count) if row_tiles == 2 else (1, 1, 1)
    )
    query_count = shape.depth // 4 * row_tiles if queries_stay else 4 * row_tiles
    words = right_count(width)
    sign = -1.0 if negate else 1.0
    natural = math.log(2.0)

    place_of, own_thread = fragments.place_of, fragments.own_thread
    room = fragments.large_room(shape.shared_bytes)
    any_lane, sync_warp = fragments.any_lane, fragments.sync_warp
    load_queries = left_loader(shape.depth, query_row, row_tiles, negate=negate)
    score = product_with_rows(
        kind, shape.depth, keys, query_row, key_row, row_tiles, stay=queries_stay, negate=negate
    )
    add = product_with_columns(kind, width, keys, value_row, row_tiles)
    tools = softmax_tools(kind, keys, width)
    outgrown, shifts_of, weigh_scores, rescale = tools.outgrown, tools.shifts_of, tools.weigh, tools.rescale
    mask_scores, pack, quad_sum = tools.mask, tools.pack, tools.quad_sum
    inverse, logarithm, blemish = result_tools(width)
    compute_exactly = exact_row(kind, shape.depth, width, shape.changes)
    start_changes, enter_changes, bend, _ = tile_change_tools(shape.changes, keys, stacked=True)
    changed = bool(shape.changes)
    own_piece, copy_rows, store_rows = row_tools(kind, width, threads, query_row)
    from_lane, load_int32, load_int64 = lanes.from_lane, lanes.load_int32, lanes.load_int64
    commit, wait = lanes.commit_copies, lanes.wait_for_copies(ahead - 1)
    wait_for_all, store_float32 = lanes.wait_for_copies(0), lanes.store_element("float32")

    @cuda.jit(device=True, inline="always")
    def first_key(lists, step):
        """Number of a step's first key."""
        column = load_int32(lists + 8 * int64(step >> step_bits))
        return int32(column * TILE + (step & (steps_a_tile - 1)) * keys)

    def copy_step(pieces, row_bytes):
        """Device function: queue copies of a step's keys, or of its values, if there is such a step."""

        @cuda.jit(device=True, inline="always")
        def copy(target, lists, step, end, matrix):
            if step < end:
                source, home, row_stride, n_k, size = matrix
                row = first_key(lists, step)
                start = source + int64(row) * row_stride
                copy_rows(target, start, home, row_stride, keys, pieces, row_bytes, n_k - row, size)

        return copy

    copy_keys, copy_values = copy_step(key_pieces, key_row), copy_step(value_pieces, value_row)

    @cuda.jit(device=True, inline="always")
    def apply_mask(scores, masks, mask, slot, step):
        """What a thread's bits of a step say."""
        part = int32(step & (steps_a_tile - 1))
        word = load_int32(masks + int64(mask) * MASK_BYTES + 8 * slot + 4 * (part * keys // 64))
        if keys == 32:
            word = int32(word >> (16 * (part & 1)))
        mask_scores(scores, word, word)

    @cuda.jit(device=True, inline="always")
    def weigh(scores, sums, weights, softmax, factor):
        """Scores to packed weights; `softmax` is (upper, lower maximum, upper, lower sum of weights)."""
        upper, lower, upper_fade, lower_fade, grows = outgrown(scores, factor, softmax[0], softmax[1])
        softmax[0], softmax[1] = upper, lower
        if grows:
            softmax[2] *= upper_fade
            softmax[3] *= lower_fade
            rescale(sums, upper_fade, lower_fade)
        # Shifts are made again in every step: to keep them takes registers that are not there.
        shifts = shifts_of(upper, lower, factor)
        softmax[2], softmax[3] = weigh_scores(scores, factor, upper, lower, shifts, softmax[2], softmax[3])
        pack(scores, weights)

    @cuda.jit(device=True, inline="always")
    def finish(sums, softmax, base, own_row, first_row, n_q, head_dim, value_dim, factors, lse_from, where):
        """Results of 16 rows, from row `own_row` of the tile row on."""
        queries_from, q_row, keys_from, k_row, values_from, v_row, out_from, out_row, lists, masks, tiles = (
            where[:11]
        )
        factor, unit = factors
        settings, head = where[11:]
        lane = int32(cuda.threadIdx.x & 31)
        first = int32(first_row + own_row)
        present = int32(n_q - first)
        upper_sum, lower_sum = quad_sum(softmax[2]), quad_sum(softmax[3])
        upper_blemish, lower_blemish = blemish(sums, upper_sum, lower_sum)
        store_rows(
            sums, inverse(upper_sum), inverse(lower_sum), place_of(base + own_row * query_row),
            out_from + int64(first) * out_row, out_row, present, value_dim,
        )  # fmt: skip
        if lse_from != 0 and lane & 3 == 0:
            row = int32(lane >> 2)
            lse_at = lse_from + 4 * int64(first + row)
            if row < present:
                store_float32(lse_at, logarithm(softmax[0], upper_sum, unit))
            if row + 8 < present:
                store_float32(lse_at + 32, logarithm(softmax[1], lower_sum, unit))
        upper_bad, lower_bad = int32(upper_blemish != float32(0.0)), int32(lower_blemish != float32(0.0))
        if any_lane(upper_bad + lower_bad != 0):
            sync_warp()  # what follows writes over what other lanes have stored
            for row in range(16):
                holder = int32((row & 7) << 2)
                upper, lower = from_lane(upper_bad, holder), from_lane(lower_bad, holder)
                bad = upper if row < 8 else lower
                if bad != 0 and row < present:
                    query, local = int64(first + row), int32(own_row + row)
                    exact = compute_exactly(
                        queries_from + query * q_row, keys_from, values_from, out_from + query * out_row,
                        k_row, v_row, head_dim, value_dim, lists, masks, tiles,
                        int32(local >> 6), int32(local & 63), factor * float32(sign),
                        (settings, head, query, n_q),
                    )  # fmt: skip
                    if lse_from != 0 and lane == 0:
                        store_float32(lse_from + 4 * query, exact * float32(natural))

    @cuda.jit(device=True, inline="always")
    def own_work(work, heads):
        """(batch, head, first row, number of tiles, their list, masks) of a block."""
        item = work + WORK_BYTES * int64(cuda.blockIdx.x)
        place = load_int64(item)
        # From a shuffle, so that the compiler knows that it is the same for the whole warp.
        tiles = int32(from_lane(int32(load_int64(item + 8)), 0))
        entry = int32(place >> 32)
        batch = int32(entry // heads)
        head = int32(entry - batch * heads)
        return batch, head, int32(int32(place) * TILE), tiles, load_int64(item + 16), load_int64(item + 24)

    @cuda.jit(device=True, inline="always")
    def own_rows_of_warp():
        """Number of a warp's first row in the tile row; from a shuffle, as above."""
        return int32(from_lane(int32(cuda.threadIdx.x >> 5), 0) * (16 * row_tiles))

    def kernel(
        work, lse, heads, group, n_q, n_k, head_dim, value_dim,
        q, k, v, out,
        q_batch, q_head, q_row, k_batch, k_head, k_row,
        v_batch, v_head, v_row, out_batch, out_head, out_row,
        factor, settings,
    ):  # fmt: skip
        unit = float32(1.0) if changed else factor
        batch, head, first_row, tiles, lists, masks = own_work(work, heads)
        key_head = int32(head // group)
        keys_from = own_piece(k + int64(batch) * k_batch + int64(key_head) * k_head, k_row)
        values_from = own_piece(v + int64(batch) * v_batch + int64(key_head) * v_head, v_row)
        queries_from = q + int64(batch) * q_batch + int64(head) * q_head + int64(first_row) * q_row
        key_size, value_size = int32(2 * head_dim), int32(2 * value_dim)
        key_matrix, value_matrix = (
            (keys_from, k, k_row, n_k, key_size),
            (values_from, v, v_row, n_k, value_size),
        )
        end = int32(tiles * steps_a_tile)

        base = room()
        ring = place_of(base + ring_at)
        last = place_of(ring + (buffers - 1) * buffer_bytes)
        copy_rows(
            base, own_piece(queries_from, q_row), q, q_row, TILE, key_pieces, query_row,
            n_q - first_row, key_size,
        )  # fmt: skip
        for number in range(ahead):
            target = place_of(ring + number * buffer_bytes)
            if number & 1 == 0:
                copy_keys(target, lists, number >> 1, end, key_matrix)
            else:
                copy_values(target, lists, number >> 1, end, value_matrix)
            commit()

        own_rows = own_rows_of_warp()
        query_rows = place_of(base + (own_rows * query_row + lane_offset(query_row)))

        queries = cuda.local.array(query_count, int32)
        right = cuda.local.array(words, int32)
        scores, more_scores = (
            cuda.local.array(score_count, float32),
            cuda.local.array(more_score_count, float32),
        )
        sums, more_sums = cuda.local.array(sum_count, float32), cuda.local.array(more_sum_count, float32)
        weights, more_weights = (
            cuda.local.array(weight_count, int32),
            cuda.local.array(more_weight_count, int32),
        )
        softmax, more_softmax = cuda.local.array(4, float32), cuda.local.array(4, float32)
        for i in range(2):
            softmax[i] = more_softmax[i] = float32(-math.inf)
            softmax[2 + i] = more_softmax[2 + i] = float32(0.0)
        for i in range(sum_count):
            sums[i] = float32(0.0)
        for i in range(more_sum_count):
            more_sums[i] = float32(0.0)
        if queries_stay and end > 0:
            wait()
            cuda.syncthreads()
            load_queries(queries, query_rows)

        state, more_state = start_changes(), start_changes()
        if changed:
            row = int32(first_row + own_rows + ((int32(own_thread()) & 31) >> 2))
            enter_changes(settings, head, row, n_q, state)
            if row_tiles == 2:
                enter_changes(settings, head, int32(row + 16), n_q, more_state)
        mask = int32(FULL)
        if masked and end > 0:
            mask = from_lane(load_int32(lists + 4), 0)
        here = ring
        step = int32(0)
        while step < end:
            wait()
            cuda.syncthreads()  # everyone's copies have come, and everyone has done with the buffer before
            before = place_of(here - buffer_bytes) if here != ring else last
            if ahead & 1 == 0:
                copy_keys(before, lists, int32(step + ahead // 2), end, key_matrix)
            else:
                copy_values(before, lists, int32(step + ahead // 2), end, value_matrix)
            commit()
            for i in range(score_count):
                scores[i] = float32(0.0)
            for i in range(more_score_count):
                more_scores[i] = float32(0.0)
            rows = place_of(here + lane_offset(key_row))
            score(scores, more_scores, queries, right, query_rows, rows)
            if changed:
                column = int32(first_key(lists, step) + 2 * (int32(own_thread()) & 3))
                bend(settings, scores, scores, factor, column, state)
                if row_tiles == 2:
                    bend(settings, more_scores, more_scores, factor, column, more_state)
            if masked:
                if mask != FULL:
                    # Addresses are asked for again: what is kept over the loop takes registers from it.
                    masks = load_int64(work + WORK_BYTES * int64(cuda.blockIdx.x) + 24)
                    slot = int32(row_tiles * (own_thread() & -32) + (own_thread() & 31))
                    apply_mask(scores, masks, mask, slot, step)
                    if row_tiles == 2:
                        apply_mask(more_scores, masks, mask, int32(slot + 32), step)
                if step + 1 < end:
                    mask = from_lane(load_int32(lists + 8 * int64((step + 1) >> step_bits) + 4), 0)
            weigh(scores, sums, weights, softmax, unit)
            if row_tiles == 2:
                weigh(more_scores, more_sums, more_weights, more_softmax, unit)
            here = place_of(here + buffer_bytes) if here != last else ring

            wait()
            cuda.syncthreads()
            before = place_of(here - buffer_bytes) if here != ring else last
            if ahead & 1 == 0:
                copy_values(before, lists, int32(step + ahead // 2), end, value_matrix)
            else:
                copy_keys(before, lists, int32(step + ahead // 2 + 1), end, key_matrix)
            commit()
            rows = place_of(here + lane_offset(value_row))
            add(sums, more_sums, weights, more_weights, right, rows)
            here = place_of(here + buffer_bytes) if here != last else ring
            step = int32(step + 1)

        wait_for_all()
        cuda.syncthreads()  # no queries are on their way any more: results take their place
        # Asked for again: what is kept over the loop takes registers from it.
        own_rows = own_rows_of_warp()
        batch, head, first_row, tiles, lists, masks = own_work(work, heads)
        key_head = int32(head // group)
        where = (
            q + int64(batch) * q_batch + int64(head) * q_head, q_row,
            k + int64(batch) * k_batch + int64(key_head) * k_head, k_row,
            v + int64(batch) * v_batch + int64(key_head) * v_head, v_row,
            out + int64(batch) * out_batch + int64(head) * out_head, out_row,
            lists, masks, tiles, settings, head,
        )  # fmt: skip
        lse_from = int64(0)
        if lse != 0:
            lse_from = lse + 4 * ((int64(batch) * heads + head) * n_q)
        factors = factor, unit
        finish(sums, softmax, base, own_rows, first_row, n_q, head_dim, value_dim, factors, lse_from, where)
        if row_tiles == 2:
            finish(
                more_sums, more_softmax, base, int32(own_rows + 16), first_row, n_q, head_dim, value_dim,
                factors, lse_from, where,
            )  # fmt: skip

    return kernel
