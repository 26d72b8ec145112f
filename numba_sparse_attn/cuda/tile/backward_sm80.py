"""Backward pass with mma.sync and cp.async, for GPUs without wgmma: once by queries, once by keys.

By queries, a block has 128 or 64 of them, with their rows of dout, and adds up dq = dscores k. By keys, it
has as many keys, with their values, and adds up dk = dscores^T q and dv = weights^T dout over all heads of a
group: with rows and columns of scores exchanged, weights and dscores come out of one product as they go into
the next, as left operands. So both are one kernel: a block's *own* rows, each in two parts (q and dout, or
k and v), against the *others*', whose two parts are each multiplied by rows and by columns.

Every warp has 16 or 32 own rows, from their scores to their gradients. The others pass through two buffers
in shared memory, one filled while the other is worked on, with one barrier a step. Weights come from the
pairs of ``statistics.py``: of own queries in registers, of other queries staged with their rows.

Rows beyond the last, and columns beyond the dimensions, are filled with zeros; masks have no bits there.
Gradients that are not finite are computed again by ``device/exact_gradients.py``, from selected pairs.

Work is a list of items, int64 (entry << 32 | tile row, tiles, address of their list, address of the masks in
lane order, and two that are for others), longest first; a block has one or, if it has 64 rows, half of one.
Entry is batch * heads + head, of own rows. A list is of int32 pairs (column, mask); by keys of quadruples
(head in the group, tile row, mask, 0).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from numba import cuda, float32, int32, int64, types

from ...formats.tiles import FULL, TILE
from ..device import fragments, lanes
from ..device.exact_gradients import exact_gradients
from ..device.row_results import result_tools
from ..device.shared_rows import lane_offset, row_tools
from ..device.tile_changes import bends, tile_change_tools
from ..device.tile_gradients import gradient_tools
from ..device.tile_products import left_loader, product_with_columns, product_with_rows, right_count
from ..device.tile_softmax import softmax_tools
from .dealing import WORK_BYTES
from .shape import MASK_BYTES
from .shape_sm80 import GradientShape
from .statistics import PAIR_BYTES

__all__ = ["BACKWARD_SIGNATURE", "make_backward"]

BACKWARD_SIGNATURE = types.void(
    *[types.int64] * 2,  # work, pairs of statistics
    *[types.int32] * 6,  # own heads, group, own rows, others, head_dim, value_dim
    *[types.int64] * 6,  # own rows' first and second part, the others', first and second gradient
    *[types.int64] * 18,  # (batch, head, row) strides of these in bytes, multiples of 16
    *[types.float32] * 2,  # abs(scale) * log2(e), scale
    types.int64,  # settings of changes (0: none)
)


@functools.cache
def make_backward(shape: GradientShape) -> Callable[..., None]:
    """The kernel's Python source, closed over compile-time numbers (compiled by ``launch.py``)."""
    kind, depth, width, masked, negate = shape.kind, shape.depth, shape.width, shape.masked, shape.negate
    by_keys, first_wanted, second_wanted = shape.by_keys, shape.first, shape.second
    rows, row_tiles, columns, stay = shape.rows, shape.row_tiles, shape.columns, shape.stay
    half_bits, step_bits = (TILE // rows).bit_length() - 1, shape.steps.bit_length() - 1
    first_bytes, second_bytes, result_bytes = shape.first_row, shape.second_row, shape.result_row
    own_second_at, ring_at, buffer_bytes = shape.own_second_at, shape.ring_at, shape.buffer
    second_at, pairs_at = columns * first_bytes, columns * (first_bytes + second_bytes)
    first_pieces, second_pieces = depth // 8, width // 8
    # The second 16 rows of a warp, if it has them; and the gradients that are not wanted.
    score_count, more_score_count = columns // 2, columns // 2 if row_tiles == 2 else 1
    weight_count, more_weight_count = columns // 4, columns // 4 if row_tiles == 2 else 1
    first_count = depth // 2 if first_wanted else 1
    second_count = width // 2 if second_wanted else 1
    more_first_count, more_second_count = (first_count, second_count) if row_tiles == 2 else (1, 1)
    left_step = 4 * row_tiles
    first_left_count = depth // 16 * left_step if stay else left_step
    second_left_count = width // 16 * left_step if stay and first_wanted else left_step
    words = right_count(max(depth if first_wanted else 0, width if second_wanted else 0))
    sign = -1.0 if negate else 1.0
    entry_bytes, tile_at, mask_at = (16, 4, 8) if by_keys else (8, 0, 4)

    place_of, own_thread = fragments.place_of, fragments.own_thread
    room = fragments.large_room(shape.shared_bytes)
    any_lane, sync_warp = fragments.any_lane, fragments.sync_warp
    load_first = left_loader(depth, first_bytes, row_tiles, negate=negate)
    load_second = left_loader(width, second_bytes, row_tiles, negate=False)
    score = product_with_rows(
        kind, depth, columns, first_bytes, first_bytes, row_tiles, stay=stay, negate=negate
    )
    slope = product_with_rows(
        kind, width, columns, second_bytes, second_bytes, row_tiles, stay=stay, negate=False
    )
    add_first = product_with_columns(kind, depth, columns, first_bytes, row_tiles)
    add_second = product_with_columns(kind, width, columns, second_bytes, row_tiles)
    mask_scores = softmax_tools(kind, columns, width).mask
    weigh, differentiate, pack = gradient_tools(kind, columns, by_column=by_keys)
    blemish_of_first, blemish_of_second = result_tools(depth).blemish, result_tools(width).blemish
    own_piece, copy_rows, store_first = row_tools(kind, depth, shape.threads, result_bytes)
    store_second = row_tools(kind, width, shape.threads, result_bytes).store_rows
    compute_exactly = exact_gradients(
        kind, depth, width, by_keys=by_keys, first=first_wanted, second=second_wanted, changes=shape.changes
    )
    start_changes, enter_changes, bend, unbend = tile_change_tools(
        shape.changes, columns, by_key=by_keys, steep=first_wanted
    )
    changed = bool(shape.changes)
    steep_count = score_count if first_wanted and bends(shape.changes) else 1
    more_steep_count = steep_count if row_tiles == 2 else 1
    from_lane, copy_chunk = lanes.from_lane, lanes.copy_chunk
    load_int32, load_int64, load_float32 = lanes.load_int32, lanes.load_int64, lanes.load_element("float32")
    commit, wait = lanes.commit_copies, lanes.wait_for_copies(0)

    @cuda.jit(device=True, inline="always")
    def own_address(work):
        """Where a block's item is."""
        return work + WORK_BYTES * int64(int32(cuda.blockIdx.x) >> half_bits)

    @cuda.jit(device=True, inline="always")
    def own_half():
        """Number of a block's first row in its tile."""
        return int32((int32(cuda.blockIdx.x) & ((1 << half_bits) - 1)) * rows)

    @cuda.jit(device=True, inline="always")
    def own_item(work, heads):
        """(entry, batch, head, first row, number of entries, their list, masks) of a block."""
        item = own_address(work)
        place = load_int64(item)
        # From a shuffle, so that the compiler knows that it is the same for the whole warp.
        count = int32(from_lane(int32(load_int64(item + 8)), 0))
        entry = int32(place >> 32)
        batch = int32(entry // heads)
        first_row = int32(int32(place) * TILE + own_half())
        return (
            entry, batch, int32(entry - batch * heads), first_row, count,
            load_int64(item + 16), load_int64(item + 24),
        )  # fmt: skip

    @cuda.jit(device=True, inline="always")
    def own_rows_of_warp():
        """Number of a warp's first row in the block's; from a shuffle, as above."""
        return int32(from_lane(int32(cuda.threadIdx.x >> 5), 0) * (16 * row_tiles))

    @cuda.jit(device=True, inline="always")
    def pairs_of(pairs, entry, group, n_own, n_other):
        """Address of the pairs of an item's first query head, and bytes from head to head."""
        if by_keys:
            size = int64((n_other + (TILE - 1)) // TILE) * (TILE * PAIR_BYTES)
            return pairs + int64(entry) * group * size, size
        size = int64((n_own + (TILE - 1)) // TILE) * (TILE * PAIR_BYTES)
        return pairs + int64(entry) * size, size

    @cuda.jit(device=True, inline="always")
    def copy_step(target, step, first_matrix, second_matrix, work, pairs, group, n_other):
        """Queue copies of the others that a step is about; returns the number of their mask."""
        # Addresses are asked for in every step: what is kept over the loop takes registers from it.
        item = own_address(work)
        entry = load_int64(item + 16) + entry_bytes * int64(step >> step_bits)
        first_from, first_home, first_head, first_stride, first_size = first_matrix
        second_from, second_home, second_head, second_stride, second_size = second_matrix
        row = int32(load_int32(entry + tile_at) * TILE + (step & ((1 << step_bits) - 1)) * columns)
        first_start = first_from + int64(row) * first_stride
        second_start = second_from + int64(row) * second_stride
        if by_keys:
            member = int64(load_int32(entry))
            first_start += member * first_head
            second_start += member * second_head
            thread = int32(own_thread())
            if thread < columns * PAIR_BYTES // 16:
                pairs_from, pairs_head = pairs_of(
                    pairs, int32(load_int64(item) >> 32), group, int32(0), n_other
                )
                start = pairs_from + member * pairs_head + PAIR_BYTES * int64(row) + 16 * thread
                copy_chunk(place_of(target + pairs_at + 16 * thread), start, int32(16))
        present = int32(n_other - row)
        copy_rows(
            target, first_start, first_home, first_stride, columns, first_pieces, first_bytes,
            present, first_size,
        )  # fmt: skip
        copy_rows(
            place_of(target + second_at), second_start, second_home, second_stride, columns, second_pieces,
            second_bytes, present, second_size,
        )  # fmt: skip
        return from_lane(load_int32(entry + mask_at), 0) if masked else int32(FULL)

    @cuda.jit(device=True, inline="always")
    def mask_word(masks, mask, slot, step):
        """A thread's bits of a step, lowest first."""
        part = int32(step & ((1 << step_bits) - 1))
        word = load_int32(masks + int64(mask) * MASK_BYTES + 8 * slot + 4 * (part * columns // 64))
        return int32(word >> ((columns // 2) * (part & (64 // columns - 1))))

    @cuda.jit(device=True, inline="always")
    def read_fixed(fixed, pairs_from, row):
        """Both numbers of a thread's upper row, `row`, and of its lower one."""
        for lower in range(2):
            at = pairs_from + PAIR_BYTES * int64(row + 8 * lower)
            fixed[lower], fixed[2 + lower] = load_float32(at), load_float32(at + 4)

    @cuda.jit(device=True, inline="always")
    def finish(first_sums, second_sums, base, own_row, item, sizes, own, others, targets, pairs, numbers):
        """Gradients of 16 rows, from row `own_row` of the block on."""
        first_row, count, lists, masks = item
        n_own, head_dim, value_dim = sizes
        own_first, own_first_row, own_second, own_second_row = own
        first_to, first_to_row, second_to, second_to_row = targets
        pairs_from, pairs_head = pairs
        factor, scale, settings, head = numbers
        first = int32(first_row + own_row)
        present = int32(n_own - first)
        room_of_warp = place_of(base + own_row * result_bytes)
        upper, lower = float32(0.0), float32(0.0)
        if first_wanted:
            upper, lower = blemish_of_first(first_sums, upper, lower)
            store_first(
                first_sums, scale, scale, room_of_warp, first_to + int64(first) * first_to_row, first_to_row,
                present, head_dim,
            )  # fmt: skip
        if second_wanted:
            upper, lower = blemish_of_second(second_sums, upper, lower)
            sync_warp()  # what follows writes over what other lanes have stored
            one = float32(1.0)
            store_second(
                second_sums, one, one, room_of_warp, second_to + int64(first) * second_to_row, second_to_row,
                present, value_dim,
            )  # fmt: skip
        upper_bad, lower_bad = int32(upper != float32(0.0)), int32(lower != float32(0.0))
        if any_lane(upper_bad + lower_bad != 0):
            sync_warp()
            for row in range(16):
                holder = int32((row & 7) << 2)
                upper_here, lower_here = from_lane(upper_bad, holder), from_lane(lower_bad, holder)
                bad = upper_here if row < 8 else lower_here
                if bad != 0 and row < present:
                    number, local = int64(first + row), int32((first + row) & (TILE - 1))
                    compute_exactly(
                        (own_first + number * own_first_row, own_second + number * own_second_row),
                        others,
                        (first_to + number * first_to_row, second_to + number * second_to_row),
                        (head_dim, value_dim),
                        (pairs_from if by_keys else pairs_from + PAIR_BYTES * number, pairs_head),
                        (lists, masks, count, int32(local >> 6), int32(local & 63)),
                        factor * float32(sign),
                        scale,
                        (settings, head, number),
                    )

    def kernel(
        work, pairs, heads, group, n_own, n_other, head_dim, value_dim,
        own_first, own_second, other_first, other_second, first_target, second_target,
        own_first_batch, own_first_head, own_first_row, own_second_batch, own_second_head, own_second_row,
        first_batch, first_head, first_row, second_batch, second_head, second_row,
        first_target_batch, first_target_head, first_target_row,
        second_target_batch, second_target_head, second_target_row,
        factor, scale, settings,
    ):  # fmt: skip
        unit = float32(1.0) if changed else factor
        entry, batch, head, begin, count, lists, masks = own_item(work, heads)
        other_head = int32(head * group) if by_keys else int32(head // group)
        first_size, second_size = int32(2 * head_dim), int32(2 * value_dim)
        first_from = other_first + int64(batch) * first_batch + int64(other_head) * first_head
        second_from = other_second + int64(batch) * second_batch + int64(other_head) * second_head
        first_matrix = own_piece(first_from, first_row), other_first, first_head, first_row, first_size
        second_matrix = own_piece(second_from, second_row), other_second, second_head, second_row, second_size
        end = int32(count << step_bits)

        base = room()
        ring = place_of(base + ring_at)
        start = own_first + int64(batch) * own_first_batch + int64(head) * own_first_head
        start += int64(begin) * own_first_row
        copy_rows(
            base, own_piece(start, own_first_row), own_first, own_first_row, rows, first_pieces, first_bytes,
            n_own - begin, first_size,
        )  # fmt: skip
        if first_wanted:
            start = own_second + int64(batch) * own_second_batch + int64(head) * own_second_head
            start += int64(begin) * own_second_row
            copy_rows(
                place_of(base + own_second_at), own_piece(start, own_second_row), own_second, own_second_row,
                rows, second_pieces, second_bytes, n_own - begin, second_size,
            )  # fmt: skip
        mask = int32(FULL)
        if end > 0:
            mask = copy_step(ring, int32(0), first_matrix, second_matrix, work, pairs, group, n_other)
        commit()

        own_row = own_rows_of_warp()
        first_rows = place_of(base + (own_row * first_bytes + lane_offset(first_bytes)))
        second_rows = place_of(base + (own_second_at + own_row * second_bytes + lane_offset(second_bytes)))
        first_left = cuda.local.array(first_left_count, int32)
        second_left = cuda.local.array(second_left_count, int32)
        right = cuda.local.array(words, int32)
        scores, more_scores = (
            cuda.local.array(score_count, float32),
            cuda.local.array(more_score_count, float32),
        )
        slopes, more_slopes = (
            cuda.local.array(score_count, float32),
            cuda.local.array(more_score_count, float32),
        )
        packed, more_packed = (
            cuda.local.array(weight_count, int32),
            cuda.local.array(more_weight_count, int32),
        )
        first_sums, more_first_sums = (
            cuda.local.array(first_count, float32),
            cuda.local.array(more_first_count, float32),
        )
        second_sums, more_second_sums = (
            cuda.local.array(second_count, float32),
            cuda.local.array(more_second_count, float32),
        )
        fixed, more_fixed = cuda.local.array(4, float32), cuda.local.array(4, float32)
        for i in range(first_count):
            first_sums[i] = float32(0.0)
        for i in range(more_first_count):
            more_first_sums[i] = float32(0.0)
        for i in range(second_count):
            second_sums[i] = float32(0.0)
        for i in range(more_second_count):
            more_second_sums[i] = float32(0.0)
        if not by_keys:
            # Pairs are padded to whole tiles, so there are some for every row.
            pairs_from, _ = pairs_of(pairs, entry, group, n_own, n_other)
            upper = int32(begin + own_row + ((int32(own_thread()) & 31) >> 2))
            read_fixed(fixed, pairs_from, upper)
            if row_tiles == 2:
                read_fixed(more_fixed, pairs_from, int32(upper + 16))
        if stay:
            wait()
            cuda.syncthreads()
            load_first(first_left, first_rows)
            if first_wanted:
                load_second(second_left, second_rows)

        steep, more_steep = (
            cuda.local.array(steep_count, float32),
            cuda.local.array(more_steep_count, float32),
        )
        state, more_state = start_changes(), start_changes()
        if changed and not by_keys:
            row = int32(begin + own_row + ((int32(own_thread()) & 31) >> 2))
            enter_changes(settings, head, row, n_own, state)
            if row_tiles == 2:
                enter_changes(settings, head, int32(row + 16), n_own, more_state)

        here, there = ring, place_of(ring + buffer_bytes)
        step = int32(0)
        while step < end:
            wait()
            cuda.syncthreads()  # everyone's copies have come, and everyone has done with the other buffer
            partial = False
            word = more_word = int32(0)
            if masked:
                partial = mask != FULL
                if partial:
                    # Asked for again: what is kept over the loop takes registers from it.
                    masks = load_int64(own_address(work) + 24)
                    thread = int32(own_thread())
                    slot = int32(row_tiles * (thread & -32) + (thread & 31) + 2 * own_half())
                    word = mask_word(masks, mask, slot, step)
                    if row_tiles == 2:
                        more_word = mask_word(masks, mask, int32(slot + 32), step)
            following = int32(step + 1)
            if following < end:
                mask = copy_step(there, following, first_matrix, second_matrix, work, pairs, group, n_other)
            commit()
            for i in range(score_count):
                scores[i] = float32(0.0)
            for i in range(more_score_count):
                more_scores[i] = float32(0.0)
            others_first = place_of(here + lane_offset(first_bytes))
            others_second = place_of(here + (second_at + lane_offset(second_bytes)))
            score(scores, more_scores, first_left, right, first_rows, others_first)
            if changed:
                entry_at = load_int64(own_address(work) + 16) + entry_bytes * int64(step >> step_bits)
                column = int32(load_int32(entry_at + tile_at) * TILE + 2 * (int32(own_thread()) & 3))
                column = int32(column + (step & ((1 << step_bits) - 1)) * columns)
                if by_keys:
                    row = int32(begin + own_row + ((int32(own_thread()) & 31) >> 2))
                    member = int32(head * group + load_int32(entry_at))
                    enter_changes(settings, member, row, n_own, state)
                    if row_tiles == 2:
                        enter_changes(settings, member, int32(row + 16), n_own, more_state)
                bend(settings, scores, steep, factor, column, state)
                if row_tiles == 2:
                    bend(settings, more_scores, more_steep, factor, column, more_state)
            if masked:
                if partial:
                    mask_scores(scores, word, word)
                    if row_tiles == 2:
                        mask_scores(more_scores, more_word, more_word)
            # By keys, of this lane's first column.
            pairs_here = place_of(here + (pairs_at + 16 * (int32(own_thread()) & 3)))
            weigh(scores, unit, fixed, pairs_here)
            if row_tiles == 2:
                weigh(more_scores, unit, more_fixed, pairs_here)
            if second_wanted:
                pack(scores, packed)
                if row_tiles == 2:
                    pack(more_scores, more_packed)
                add_second(second_sums, more_second_sums, packed, more_packed, right, others_second)
            if first_wanted:
                for i in range(score_count):
                    slopes[i] = float32(0.0)
                for i in range(more_score_count):
                    more_slopes[i] = float32(0.0)
                slope(slopes, more_slopes, second_left, right, second_rows, others_second)
                unbend(scores, steep)
                differentiate(scores, slopes, fixed, pairs_here)
                pack(slopes, packed)
                if row_tiles == 2:
                    unbend(more_scores, more_steep)
                    differentiate(more_scores, more_slopes, more_fixed, pairs_here)
                    pack(more_slopes, more_packed)
                add_first(first_sums, more_first_sums, packed, more_packed, right, others_first)
            here, there = there, here
            step = following

        wait()
        cuda.syncthreads()  # nothing is on its way or in use any more: results take its place
        # Asked for again: what is kept over the loop takes registers from it.
        own_row = own_rows_of_warp()
        entry, batch, head, begin, count, lists, masks = own_item(work, heads)
        other_head = int32(head * group) if by_keys else int32(head // group)
        item = begin, count, lists, masks
        own = (
            own_first + int64(batch) * own_first_batch + int64(head) * own_first_head, own_first_row,
            own_second + int64(batch) * own_second_batch + int64(head) * own_second_head, own_second_row,
        )  # fmt: skip
        others = (
            other_first + int64(batch) * first_batch + int64(other_head) * first_head, first_head, first_row,
            other_second + int64(batch) * second_batch + int64(other_head) * second_head, second_head,
            second_row,
        )  # fmt: skip
        targets = (
            first_target + int64(batch) * first_target_batch + int64(head) * first_target_head,
            first_target_row,
            second_target + int64(batch) * second_target_batch + int64(head) * second_target_head,
            second_target_row,
        )
        sizes = n_own, head_dim, value_dim
        numbers = factor, scale, settings, other_head if by_keys else head
        place = pairs_of(pairs, entry, group, n_own, n_other)
        finish(first_sums, second_sums, base, own_row, item, sizes, own, others, targets, place, numbers)
        if row_tiles == 2:
            finish(
                more_first_sums, more_second_sums, base, int32(own_row + 16), item, sizes, own, others,
                targets, place, numbers,
            )  # fmt: skip

    return kernel
