"""Backward pass on Hopper: gradients of queries, and those of keys and values, by two sweeps over the tiles.

Two sweeps and seven products instead of one and five, because then every sum has one owner and one order:
no atomics, the same bits every time, and no workspace but two numbers a query. They are one kernel, made
twice: see ``shape_gradients.py`` for what stays in shared memory and what comes in steps. Blocks and rings
are those of ``forward_sm90.py``: warpgroups 0 and 1 own 64 rows of an item each, warpgroup 2 copies.

For gradients of keys the products are the transposed ones, k @ q.T and v @ dout.T, so that weights and slopes
lie in registers as the left operands of the sums dk += slopes.T @ q and dv += weights.T @ dout, as they do
for those of queries in dq += slopes @ k.

In a step, a multiplying warpgroup starts the scores, the products of gradient and values, and the sum of the
last step's slopes, and waits for each when it needs it: weights are computed while the second and the third
run, slopes while the third does. On an H200, float16, 16 heads of 16,384 dense tokens, head dimension 128:
gradients of queries took 4.26 ms, with the sum in the second place 5.08 ms, in the first place 5.52 ms; those
of keys 6.1 to 6.8 ms in several runs, with the sum in the second place as much, in the first place 7.38 ms.

Rows beyond the last, and columns beyond a dimension, arrive as zeros from the copy engine; masks have no
bits there. Weights of pairs that are not selected are 0. If an element that is not selected is not finite,
0 * nan spoils some rows: they show, and are computed again pair by pair.

A warpgroup leaves out steps in which it has no pairs: one in four of those of tiles that an edge of a window
or the diagonal crosses, more where blocks have 64 tokens. Together with the cutting of long rows, backward
passes then took: documents of 1024 tokens, causal, 0.622 instead of 0.650 ms; longformer 0.706 instead of
0.753; document and question 0.700 instead of 0.764; BigBird with blocks of 64 0.876 instead of 1.020; a
window of 256 0.613 to 0.644 instead of 0.627; a long document of 65,536 tokens 1.42 to 1.64 instead of 2.51.
No faster with the next item's rows brought into L2 early (windows 0.627, documents 0.625 ms).

Counters (ncu, float16, head dimension 128): with a window of 256 to both sides of 16,384 tokens, 16 heads,
the sweep for queries takes 0.246 ms, Tensor Cores busy for 54 % of it, L2 34 %, memory 29 %, 0.32
instructions a cycle and scheduler; the one for keys 0.337 ms, 51 %, 29 %, 25 %, 0.29; the statistics before
them 0.036 ms at 80 % of memory's rate. Longformer, 4096 tokens, 64 heads: 0.286 and 0.388 ms, 55 and 53 %, 38
and 32 %, 36 and 31 %. Nothing is busy for much more than half of the time: as in the forward pass, it is the
ends of short rows and, for keys, the chain of a step.

Work is a list of items, int64 (entry << 32 | tile row, tiles | part << 32, address of their list, address of
the masks in lane order, first entry of the list in two); block b takes number b, then begins[b] to
begins[b + 1] - 1. A list has int32 (tile, mask) or, for keys, (head in the group, tile, mask, 0); entry is
batch * heads + head, of the item's heads. A part above 0 says that these are not all tiles of the row: what
they come to goes to slot part - 1, and ``merge_gradients.py`` makes results of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from numba import cuda, float32, int32, int64, types, uint8, uint32

from ...formats.tiles import FULL, TILE
from ..device.exact_gradients import exact_gradients
from ..device.lanes import from_lane, load_element, load_int32, load_int64, store_element
from ..device.row_parts import gradient_row_bytes, sums_writer
from ..device.row_results import result_tools
from ..device.tile_changes import bends, tile_change_tools
from ..device.tile_gradients import gradient_tools
from ..device.warpgroups import group_barriers
from ..ptx.arithmetic import own_thread
from ..ptx.barriers import (
    barrier_arrive,
    barrier_expect,
    barrier_init,
    barrier_wait,
    fence_barrier_init,
    give_registers,
    take_registers,
)
from ..ptx.memory import store_int32
from ..ptx.registers import keep_by_bits, pack_pair
from ..ptx.shared import load_shared_int32, shared_address, store_shared_int32
from ..ptx.tma import acquire_map, copy_bytes, load_box
from ..ptx.wgmma import CHUNK, Score, Sum, finish, start
from .dealing import WORK_BYTES
from .shape import MASK_BYTES
from .shape_gradients import GradientShape

__all__ = ["BACKWARD_SIGNATURE", "THREADS", "make_backward"]

#: Two warpgroups that multiply and one that copies.
THREADS = 384
_CONSUMERS = 2
_CONSUMER_WARPS = 8
_ROWS = 64

BACKWARD_SIGNATURE = types.void(
    *[types.int64] * 5,  # descriptions of own_a, own_b, other_a, other_b; work, begins, pairs; parts' memory
    *[types.int32] * 6,  # heads of the items, group, rows of an item's head, of pairs a head, dimensions
    *[types.int64] * 6,  # own_a, own_b, other_a, other_b, target_a, target_b
    *[types.int64] * 18,  # (batch, head, row) strides of these in bytes
    *[types.float32] * 2,  # abs(scale) * log2(e), scale
    types.int64,  # settings of changes (0: none)
)


@functools.cache
def make_backward(shape: GradientShape) -> Callable[..., None]:
    """The kernel's Python source, closed over compile-time numbers (compiled by ``launch.py``)."""
    kind, masked, of_keys, first, second = shape.kind, shape.masked, shape.of_keys, shape.first, shape.second
    columns, steps_a_tile, stages = shape.columns, shape.steps, shape.stages
    depth_chunks, width_chunks = shape.depth_chunks, shape.width_chunks
    own_chunks = depth_chunks + (width_chunks if first else 0)
    item_chunk, step_chunk = shape.item_chunk, shape.step_chunk
    half_bytes, step_bytes, pair_bytes = shape.half_bytes, shape.step_bytes, shape.pair_bytes
    steps_at, pairs_at = shape.item_bytes, shape.pairs_at
    masks_at, barriers_at = shape.masks_at, shape.barriers_at
    stage_bits = stages.bit_length() - 1
    score_count, weight_count = columns // 2, columns // 4
    # Without a result its sums are one element that nothing uses.
    a_count, b_count = shape.depth // 2 if first else 1, shape.width // 2 if second else 1
    a_quads, b_quads = a_count // 4, b_count // 4
    entry_bytes, tile_at, mask_at = (16, 4, 8) if of_keys else (8, 0, 4)
    sign = -1.0 if shape.negate else 1.0

    scores_of = Score(kind, shape.depth, columns, _ROWS, shape.negate)
    products_of = Score(kind, shape.width, columns, _ROWS)
    sum_a, sum_b = Sum(kind, columns, shape.depth), Sum(kind, columns, shape.width)
    begin, begin_scores = start(scores_of, products_of, unfinished=1), start(scores_of)
    proceed = start(scores_of, products_of, sum_a, unfinished=2)
    proceed_scores = start(scores_of, sum_b, unfinished=1)
    add_a, add_b = start(sum_a), start(sum_b)
    wait_b = finish(sum_b)

    weigh, slope, pack = gradient_tools(kind, columns, by_column=of_keys)
    compute_exactly = exact_gradients(
        kind, shape.depth, shape.width, by_keys=of_keys, first=first, second=second, changes=shape.changes
    )
    start_changes, enter_changes, bend, unbend = tile_change_tools(
        shape.changes, columns, by_key=of_keys, steep=first
    )
    changed = bool(shape.changes)
    steep_count = score_count if first and bends(shape.changes) else 1
    blemish_of_a, blemish_of_b = result_tools(8 * a_quads).blemish, result_tools(8 * b_quads).blemish
    pack_two = pack_pair(kind)
    store_one, load_real = store_element(kind), load_element("float32")
    part_bytes = gradient_row_bytes(shape.depth, shape.width, first=first, second=second)
    write_sums_of_a = sums_writer(8 * a_quads, part_bytes)
    write_sums_of_b = sums_writer(8 * b_quads, part_bytes)
    group_any = group_barriers().any
    keep = keep_by_bits(0, score_count)
    keep_few, keep_many = give_registers(24), take_registers(240)

    # Steps are counted from the block's first: a count says which stage it is, and how often that has been
    # used before. Both ends of a ring count for themselves.
    @cuda.jit(device=True, inline="always")
    def stage_of(turn):
        return int32(turn & (stages - 1))

    @cuda.jit(device=True, inline="always")
    def stage_parity(turn):
        return int32((turn >> stage_bits) & 1)

    # The thread's mask of a step, read before products are started and used when scores are there. Full tiles
    # are masked, too: with a branch around that, a window of 256 to either side was not faster (within 3 %).
    @cuda.jit(device=True, inline="always")
    def read_mask(base, flags, turn):
        if not masked:
            return int32(-1)
        stage = stage_of(turn)
        at = uint32(base + masks_at + stage * MASK_BYTES + 8 * own_thread())
        if columns == 64:
            word = load_shared_int32(uint32(at + 4 * (turn & 1)))
        else:
            word = int32(load_shared_int32(uint32(at + 2 * (turn & 2))) >> (16 * (turn & 1)))
        return int32(-1) if load_shared_int32(uint32(flags + 4 * stage)) == FULL else word

    @cuda.jit(device=True, inline="always")
    def row_of(consumer):
        # Of an item's rows, a thread has this one and the one 8 further down.
        thread = own_thread()
        return int32(consumer * _ROWS + (((thread & 127) >> 5) << 4) + ((thread & 31) >> 2))

    # As with masks, read before products are started. A key meets queries of several heads.
    @cuda.jit(device=True, inline="always")
    def enter_step(settings, work, item, consumer, flags, turn, rows, state):
        if not changed:
            return int32(0)
        stage = stage_of(turn)
        if of_keys:
            row = int32(load_int64(work + WORK_BYTES * int64(item))) * TILE + row_of(consumer)
            head = load_shared_int32(uint32(flags + 4 * (2 * stages + stage)))
            enter_changes(settings, head, row, rows, state)
        return int32(load_shared_int32(uint32(flags + 4 * (stages + stage))) + 2 * (own_thread() & 3))

    @cuda.jit(device=True, inline="always")
    def mask_scores(scores, mask):
        if masked:
            keep(scores, mask)

    @cuda.jit(device=True, inline="always")
    def pairs_of_step(base, turn):
        return uint32(base + pairs_at + stage_of(turn) * pair_bytes + 16 * (own_thread() & 3))

    @cuda.jit(device=True, inline="always")
    def release(empty, turn):
        if own_thread() & 31 == 0:
            barrier_arrive(uint32(empty + 8 * stage_of(turn)))

    # The next step in which this warpgroup has pairs, and its rows are there. The last one before, `pending`,
    # still holds its stage: all others may be passed over but the one whose stage comes before that again.
    @cuda.jit(device=True, inline="always")
    def next_step(base, flags, full, empty, consumer, turn, end, pending):
        while turn < end:
            stage = stage_of(turn)
            barrier_wait(uint32(full + 8 * stage), stage_parity(turn))
            if not masked or stages == 2:
                break
            if load_shared_int32(uint32(flags + 4 * stage)) == FULL or turn - pending >= stages - 1:
                break
            if group_any(consumer, read_mask(base, flags, turn)):
                break
            release(empty, turn)
            turn = int32(turn + 1)
        return turn

    def make_weights(later):
        """What follows the scores of an item's first step, or of a later one: weights of sums, packed.

        When it returns, no product is under way, and the step before is released.
        """
        add_b_after_products = start(sum_b, unfinished=2 if later else 1, before=(products_of,))
        wait_products = finish(products_of, unfinished=1 if later else 0)
        wait_a = finish(sum_a, unfinished=1 if second else 0)
        if first and second:

            @cuda.jit(device=True, inline="always")
            def compute(
                scores, products, a, b, slopes, weights, values, fixed, at, factor, steep, pending, empty
            ):  # fmt: skip
                weigh(scores, factor, fixed, at)
                pack(scores, weights)
                add_b_after_products(b, weights, products, values)
                unbend(scores, steep)
                slope(scores, products, fixed, at)
                if later:
                    wait_a(a, slopes)
                    release(empty, pending)
                pack(products, slopes)
                wait_b(b, weights)

        elif first:

            @cuda.jit(device=True, inline="always")
            def compute(
                scores, products, a, b, slopes, weights, values, fixed, at, factor, steep, pending, empty
            ):  # fmt: skip
                weigh(scores, factor, fixed, at)
                wait_products(products)
                unbend(scores, steep)
                slope(scores, products, fixed, at)
                if later:
                    wait_a(a, slopes)
                    release(empty, pending)
                pack(products, slopes)

        else:

            @cuda.jit(device=True, inline="always")
            def compute(
                scores, products, a, b, slopes, weights, values, fixed, at, factor, steep, pending, empty
            ):  # fmt: skip
                weigh(scores, factor, fixed, at)
                if later:
                    wait_b(b, weights)
                    release(empty, pending)
                pack(scores, weights)

        return compute

    first_weights, next_weights = make_weights(False), make_weights(True)

    # Operands of the products of a step: `own` and the step's `other` are where its matrices begin.
    own_b_units = depth_chunks * (item_chunk // 16)
    other_b_units = depth_chunks * (step_chunk // 16)
    if first:

        @cuda.jit(device=True, inline="always")
        def begin_step(scores, products, own, other):
            begin(scores, products, own, other, uint32(own + own_b_units), uint32(other + other_b_units))

        @cuda.jit(device=True, inline="always")
        def proceed_step(scores, products, a, b, slopes, weights, own, before, other):
            proceed(
                scores, products, a, slopes, own, other,
                uint32(own + own_b_units), uint32(other + other_b_units), before,
            )  # fmt: skip

        @cuda.jit(device=True, inline="always")
        def end_steps(a, b, slopes, weights, before):
            add_a(a, slopes, before)

    else:

        @cuda.jit(device=True, inline="always")
        def begin_step(scores, products, own, other):
            begin_scores(scores, own, other)

        @cuda.jit(device=True, inline="always")
        def proceed_step(scores, products, a, b, slopes, weights, own, before, other):
            proceed_scores(scores, b, weights, own, other, uint32(before + other_b_units))

        @cuda.jit(device=True, inline="always")
        def end_steps(a, b, slopes, weights, before):
            add_b(b, weights, uint32(before + other_b_units))

    @cuda.jit(device=True, inline="always")
    def store_row(sums, quads, offset, target, dimension, lane, scale):
        # A quad writes 8 neighbours of its row at a time.
        for i in range(quads):
            column = int32(8 * i + 2 * (lane & 3))
            low, high = sums[4 * i + offset] * scale, sums[4 * i + offset + 1] * scale
            if column + 1 < dimension:
                store_int32(target + 2 * column, pack_two(low, high))
            elif column < dimension:
                store_one(target + 2 * column, low)

    @cuda.jit(device=True, inline="always")
    def load_item(maps, base, item_full, item_empty, parity, tile, head, batch):
        for half in range(_CONSUMERS):
            full = uint32(item_full + 8 * half)
            barrier_wait(uint32(item_empty + 8 * half), int32(parity ^ 1))
            barrier_expect(full, half_bytes)
            row = int32(tile * TILE + half * _ROWS)
            for c in range(own_chunks):
                at = uint32(base + half * half_bytes + c * item_chunk)
                if c < depth_chunks:
                    load_box(at, maps, full, c * CHUNK, row, head, batch)
                else:
                    load_box(at, maps + 128, full, (c - depth_chunks) * CHUNK, row, head, batch)

    def kernel(
        maps, work, begins, pairs, parts, heads, group, rows, pair_rows, head_dim, value_dim,
        own_a, own_b, other_a, other_b, target_a, target_b,
        own_a_batch, own_a_head, own_a_row, own_b_batch, own_b_head, own_b_row,
        other_a_batch, other_a_head, other_a_row, other_b_batch, other_b_head, other_b_row,
        target_a_batch, target_a_head, target_a_row, target_b_batch, target_b_head, target_b_row,
        factor, scale, settings,
    ):  # fmt: skip
        # A trip to memory, asked for before there is anything to wait for.
        item = int32(cuda.blockIdx.x)
        begins += 4 * int64(item)
        work_at = work + WORK_BYTES * int64(item)
        place, entry_at, masks = load_int64(work_at), load_int64(work_at + 16), load_int64(work_at + 24)
        tiles, tile_row = load_int32(work_at + 8), load_int32(work_at + 32 + tile_at)
        member, mask = load_int32(work_at + 32), load_int32(work_at + 32 + mask_at)
        unit = float32(1.0) if changed else factor
        base = uint32((shared_address(cuda.shared.array(0, uint8)) + 1023) & 0xFFFFFC00)
        item_full = uint32(base + barriers_at)
        item_empty = uint32(item_full + 8 * _CONSUMERS)
        step_full = uint32(item_empty + 8 * _CONSUMERS)
        step_empty = uint32(step_full + 8 * stages)
        flags = uint32(step_empty + 8 * stages)
        thread = int32(cuda.threadIdx.x)
        # From a shuffle, so that the compiler knows that it is the same for the whole warp.
        warpgroup = int32(from_lane(int32(thread >> 7), 0))
        if thread == 0:
            for half in range(_CONSUMERS):
                barrier_init(uint32(item_full + 8 * half), 1)
                barrier_init(uint32(item_empty + 8 * half), _CONSUMER_WARPS // _CONSUMERS)
            for stage in range(stages):
                barrier_init(uint32(step_full + 8 * stage), 1)
                barrier_init(uint32(step_empty + 8 * stage), _CONSUMER_WARPS)
            fence_barrier_init()
        cuda.syncthreads()

        if warpgroup == _CONSUMERS:
            keep_few()
            if thread == 128 * _CONSUMERS:
                for described in range(4):
                    acquire_map(maps + 128 * described)
                turn, parity = int32(0), int32(0)
                while item < load_int32(begins + 4):
                    entry = int32(place >> 32)
                    batch = int32(entry // heads)
                    head = int32(entry - batch * heads)
                    # The first steps wait for some steps of the item before, and its rows for its end: all
                    # that fit but one come before the rows.
                    ahead = min(int32(stages - 1), int32(tiles * steps_a_tile))
                    if ahead == 0:
                        load_item(maps, base, item_full, item_empty, parity, int32(place), head, batch)
                    tile = int32(0)
                    while tile < tiles:
                        other_head = int32(head // group)
                        if of_keys:
                            other_head = int32(head * group + member)
                        for step in range(steps_a_tile):
                            row = int32(tile_row * TILE + step * columns)
                            stage = stage_of(turn)
                            full = uint32(step_full + 8 * stage)
                            barrier_wait(uint32(step_empty + 8 * stage), int32(stage_parity(turn) ^ 1))
                            announced = int32(step_bytes + pair_bytes)
                            if changed:
                                store_shared_int32(uint32(flags + 4 * (stages + stage)), row)
                                store_shared_int32(uint32(flags + 4 * (2 * stages + stage)), other_head)
                            if masked:
                                store_shared_int32(uint32(flags + 4 * stage), mask)
                                if mask != FULL:
                                    announced = int32(announced + MASK_BYTES)
                            barrier_expect(full, announced)
                            for c in range(depth_chunks + width_chunks):
                                at = uint32(base + steps_at + stage * step_bytes + c * step_chunk)
                                if c < depth_chunks:
                                    load_box(at, maps + 256, full, c * CHUNK, row, other_head, batch)
                                else:
                                    column = (c - depth_chunks) * CHUNK
                                    load_box(at, maps + 384, full, column, row, other_head, batch)
                            if of_keys:
                                query = int64(batch * heads * group + other_head) * pair_rows + row
                                copy_bytes(
                                    uint32(base + pairs_at + stage * pair_bytes),
                                    pairs + 8 * query, pair_bytes, full,
                                )  # fmt: skip
                            if masked:
                                if mask != FULL:
                                    copy_bytes(
                                        uint32(base + masks_at + stage * MASK_BYTES),
                                        masks + int64(mask) * MASK_BYTES, MASK_BYTES, full,
                                    )  # fmt: skip
                            turn = int32(turn + 1)
                            ahead = int32(ahead - 1)
                            if ahead == 0:
                                load_item(
                                    maps, base, item_full, item_empty, parity, int32(place), head, batch
                                )
                        tile = int32(tile + 1)
                        if tile < tiles:
                            entry_at += entry_bytes
                            member, tile_row = load_int32(entry_at), load_int32(entry_at + tile_at)
                            mask = load_int32(entry_at + mask_at)
                    item = load_int32(begins) if item < cuda.gridDim.x else int32(item + 1)
                    parity = int32(parity ^ 1)
                    if item < load_int32(begins + 4):
                        work_at = work + WORK_BYTES * int64(item)
                        place, entry_at = load_int64(work_at), load_int64(work_at + 16)
                        masks, tiles = load_int64(work_at + 24), load_int32(work_at + 8)
                        member, tile_row = load_int32(work_at + 32), load_int32(work_at + 32 + tile_at)
                        mask = load_int32(work_at + 32 + mask_at)
        else:
            keep_many()
            a, b = cuda.local.array(a_count, float32), cuda.local.array(b_count, float32)
            scores = cuda.local.array(score_count, float32)
            products = cuda.local.array(score_count, float32)
            slopes = cuda.local.array(weight_count, int32)
            weights = cuda.local.array(weight_count, int32)
            fixed = cuda.local.array(4, float32)
            steep = cuda.local.array(steep_count, float32)
            state = start_changes()
            consumer = warpgroup
            # Operands of products are named in units of 16 bytes.
            own = uint32((base + consumer * half_bytes) >> 4)
            others = uint32((base + steps_at) >> 4)
            # Where the block's items are is asked for again: the longest loop has no register left.
            turn = int32(0)
            while item < load_int32(begins + 4):
                end = int32(turn + load_int32(work + WORK_BYTES * int64(item) + 8) * steps_a_tile)
                if not of_keys:
                    mine = row_of(consumer)
                    place = load_int64(work + WORK_BYTES * int64(item))
                    pair = pairs + 8 * ((place >> 32) * pair_rows + int64(int32(place)) * TILE + mine)
                    fixed[0], fixed[2] = load_real(pair), load_real(pair + 4)
                    fixed[1], fixed[3] = load_real(pair + 64), load_real(pair + 68)
                    if changed:
                        row = int32(int32(place) * TILE + mine)
                        enter_changes(settings, int32(place >> 32) % heads, row, rows, state)
                for i in range(a_count):
                    a[i] = float32(0.0)
                for i in range(b_count):
                    b[i] = float32(0.0)
                nth = int32(0)
                if item >= cuda.gridDim.x:
                    nth = int32(item - load_int32(begins) + 1)
                barrier_wait(uint32(item_full + 8 * consumer), int32(nth & 1))
                turn = next_step(base, flags, step_full, step_empty, consumer, turn, end, end)
                if turn < end:
                    pending = turn
                    other = uint32(others + stage_of(turn) * (step_bytes >> 4))
                    mask, at = read_mask(base, flags, turn), pairs_of_step(base, turn)
                    column = enter_step(settings, work, item, consumer, flags, turn, rows, state)
                    begin_step(scores, products, own, other)
                    bend(settings, scores, steep, factor, column, state)
                    mask_scores(scores, mask)
                    first_weights(
                        scores, products, a, b, slopes, weights, uint32(other + other_b_units),
                        fixed, at, unit, steep, pending, step_empty,
                    )  # fmt: skip
                    turn = next_step(
                        base, flags, step_full, step_empty, consumer, int32(turn + 1), end, pending
                    )
                    while turn < end:
                        before = other
                        other = uint32(others + stage_of(turn) * (step_bytes >> 4))
                        mask, at = read_mask(base, flags, turn), pairs_of_step(base, turn)
                        column = enter_step(settings, work, item, consumer, flags, turn, rows, state)
                        proceed_step(scores, products, a, b, slopes, weights, own, before, other)
                        bend(settings, scores, steep, factor, column, state)
                        mask_scores(scores, mask)
                        next_weights(
                            scores, products, a, b, slopes, weights, uint32(other + other_b_units),
                            fixed, at, unit, steep, pending, step_empty,
                        )  # fmt: skip
                        pending = turn
                        turn = next_step(
                            base, flags, step_full, step_empty, consumer, int32(turn + 1), end, pending
                        )
                    end_steps(a, b, slopes, weights, other)
                    release(step_empty, pending)
                lane = int32(own_thread() & 31)
                if lane == 0:
                    barrier_arrive(uint32(item_empty + 8 * consumer))

                part = load_int32(work + WORK_BYTES * int64(item) + 12)
                if part > 0:
                    slot_row = parts + (int64(part - 1) * TILE + row_of(consumer)) * part_bytes
                    if first:
                        write_sums_of_a(slot_row, lane, a)
                    if second:
                        write_sums_of_b(slot_row + (part_bytes - 32 * b_quads), lane, b)
                else:
                    upper, lower = blemish_of_a(a, float32(0.0), float32(0.0))
                    upper, lower = blemish_of_b(b, upper, lower)
                    upper_bad, lower_bad = upper != float32(0.0), lower != float32(0.0)
                    place = load_int64(work + WORK_BYTES * int64(item))
                    entry = int32(place >> 32)
                    batch = int32(entry // heads)
                    head = int32(entry - batch * heads)
                    row = int64(int32(place)) * TILE + row_of(consumer)
                    a_at = target_a + int64(batch) * target_a_batch + int64(head) * target_a_head
                    b_at = target_b + int64(batch) * target_b_batch + int64(head) * target_b_head
                    one = float32(1.0)
                    if row < rows and not upper_bad:
                        store_row(a, a_quads, 0, a_at + row * target_a_row, head_dim, lane, scale)
                        store_row(b, b_quads, 0, b_at + row * target_b_row, value_dim, lane, one)
                    row += 8
                    if row < rows and not lower_bad:
                        store_row(a, a_quads, 2, a_at + row * target_a_row, head_dim, lane, scale)
                        store_row(b, b_quads, 2, b_at + row * target_b_row, value_dim, lane, one)
                    if cuda.any_sync(0xFFFFFFFF, upper_bad or lower_bad):
                        other_head = int64(head // group)
                        pairs_of = pairs
                        if of_keys:
                            other_head = int64(head) * group
                            pairs_of = pairs + 8 * (int64(batch) * heads * group + other_head) * pair_rows
                        own_a_at = own_a + int64(batch) * own_a_batch + head * own_a_head
                        own_b_at = own_b + int64(batch) * own_b_batch + head * own_b_head
                        for nth in range(16):
                            holder = int32((nth & 7) << 2)
                            upper_here = from_lane(int32(upper_bad), holder)
                            lower_here = from_lane(int32(lower_bad), holder)
                            bad = upper_here if nth < 8 else lower_here
                            local = int32((((own_thread() & 127) >> 5) << 4) + nth)
                            row = int64(int32(place)) * TILE + consumer * _ROWS + local
                            if bad != 0 and row < rows:
                                if not of_keys:
                                    pairs_of = pairs + 8 * (int64(entry) * pair_rows + row)
                                compute_exactly(
                                    (own_a_at + row * own_a_row, own_b_at + row * own_b_row),
                                    (
                                        other_a + int64(batch) * other_a_batch + other_head * other_a_head,
                                        other_a_head, other_a_row,
                                        other_b + int64(batch) * other_b_batch + other_head * other_b_head,
                                        other_b_head, other_b_row,
                                    ),
                                    (a_at + row * target_a_row, b_at + row * target_b_row),
                                    (head_dim, value_dim),
                                    (pairs_of, 8 * int64(pair_rows)),
                                    (
                                        load_int64(work + WORK_BYTES * int64(item) + 16),
                                        load_int64(work + WORK_BYTES * int64(item) + 24),
                                        load_int32(work + WORK_BYTES * int64(item) + 8),
                                        consumer, local,
                                    ),
                                    factor * float32(sign), scale,
                                    (settings, other_head if of_keys else head, row),
                                )  # fmt: skip
                item = load_int32(begins) if item < cuda.gridDim.x else int32(item + 1)

    return kernel
