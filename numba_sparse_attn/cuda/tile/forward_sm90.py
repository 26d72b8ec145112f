"""Forward pass on Hopper: persistent blocks, a copying warpgroup, two multiplying ones, 128 queries a time.

Warpgroups 0 and 1 own 64 rows of a tile row each. Warpgroup 2 gives its registers away and keeps one thread:
it walks the block's work and has the copy engine (TMA) bring queries, keys, values and masks into rings in
shared memory. Results leave through a query buffer, again by the copy engine.

Per step, a multiplying warpgroup starts the product of the next scores and that of the last weights with
their values together, and computes weights from the former while the latter still runs. Nothing makes the two
take turns: with barriers that did, a tenth of all tiles of 16,384 tokens took 0.432 instead of 0.397 ms.
Two blocks a multiprocessor, each with half of the registers and no product under way while it computes
weights, were no cure for the short products of head dimension 64: 0.669 instead of 0.653 ms.

There a step of a warp is a chain of 2170 cycles, of which products are 1024 for both warpgroups:
exponentials 680, maxima 330, starting products 175, packing 130, the wait for scores 125, branches and
barriers most of the rest; Tensor Cores are busy for 47 % of the time, L2 for 21 % (4096 tokens, 64 heads,
float16: 0.630 ms; cuDNN 0.584 ms), where it is 78 % and 33 % at head dimension 128. Not faster: scores
started two steps ahead, which 240 registers allow in steps of 64 keys (0.83 ms, and at head dimension 128
0.97 instead of 0.87 ms: what a step costs beside its keys is paid twice); a quarter of the exponentials by
polynomials (0.70 ms); maxima as a tree, and the first step like all others (0.626 ms; at 128 0.81 instead of
0.87 ms with full tiles, but a window of 256 0.198 instead of 0.172 ms).

A row of few tiles costs more than its tiles: with a window of 256 to both sides of 16,384 tokens, 5 tiles a
row, Tensor Cores are busy for 60 % (L2 47 %, memory 33 %), 0.164 ms. A row's first scores started together
with the last sum of the row before were no cure: 0.178 ms, and 0.851 instead of 0.832 ms with all tiles. Nor
with lists read a tile ahead by the copying warp, and a further warp that stores results and frees buffers:
0.177 ms; nor with the next queries asked for in the middle of a row (0.165 instead of 0.167 ms), nor with
keys and values of a block's next row brought into L2 by a further warp (0.184 ms; one tile of each row only:
0.173; dense tiles 0.884 instead of 0.799 ms, so the way from L2 has little to spare). While one warpgroup
ends a row, the other has the Tensor Cores to itself; that is lost when both always want them.

A grid of one row a block is a matter of latency: 512, 1024 tokens with a window of 128, 16 heads, head
dimension 64, take 12.1 and 12.9 us (with the launch of a graph), 12.5 and 13.4 when a block looked up which
items are its own before it read the first, and that before its list. Without the wait for descriptions of
tensors: as long.

Packing weights while the next exponentials are computed came to nothing: the assembler moves it behind the
wait.

Keys beyond the last, and columns beyond the head dimension, arrive as zeros from the copy engine; masks have
no bits there. Rows and columns beyond the results are dropped by it.

Work is a list of items, int64 (entry << 32 | tile row, tiles | part << 32, address of their list, address of
the masks in lane order, first entry of the list, 0); block b takes number b, then begins[b] to
begins[b + 1] - 1. A tile list is of int32 pairs (column, mask); entry is batch * heads + head. A part above 0
says that these are not all tiles of the row: what comes of them goes to slot part - 1, and ``merge.py`` makes
results of it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from numba import cuda, float32, int32, int64, types, uint8, uint32

from ...formats.tiles import FULL, TILE
from ..device.exact_rows import exact_row
from ..device.lanes import from_lane, load_int32, load_int64, store_element
from ..device.row_parts import part_writer
from ..device.tile_changes import tile_change_tools
from ..device.tile_softmax import softmax_tools
from ..device.warpgroups import group_barriers
from ..ptx.barriers import (
    barrier_arrive,
    barrier_expect,
    barrier_init,
    barrier_wait,
    fence_async_proxy,
    fence_barrier_init,
    give_registers,
    take_registers,
)
from ..ptx.memory import prefetch
from ..ptx.registers import pack_pair
from ..ptx.shared import load_shared_int32, shared_address, store_shared_int32
from ..ptx.tma import (
    acquire_map,
    commit_stores,
    copy_bytes,
    load_box,
    store_box,
    wait_for_reads,
    wait_for_stores,
)
from ..ptx.wgmma import CHUNK, Chain, products
from .dealing import WORK_BYTES
from .shape import MASK_BYTES, TileShape

__all__ = ["FORWARD_SIGNATURE", "THREADS", "make_forward"]

#: Two warpgroups that multiply and one that copies.
THREADS = 384
_CONSUMERS = 2
_CONSUMER_WARPS = 8
_ROWS = 64

FORWARD_SIGNATURE = types.void(
    *[types.int64] * 3,  # descriptions of q, k, v and out, work, begins
    *[types.int64] * 2,  # lse (0: not wanted), contiguous; memory for parts of rows
    *[types.int32] * 5,  # heads, group, n_q, head_dim, value_dim
    *[types.int64] * 4,  # q, k, v, out
    *[types.int64] * 12,  # (batch, head, row) strides of q, k, v, out in bytes
    types.float32,  # abs(scale) * log2(e)
    types.int64,  # settings of changes (0: none)
)


@functools.cache
def make_forward(shape: TileShape) -> Callable[..., None]:
    """The kernel's Python source, closed over compile-time numbers (compiled by ``launch.py``)."""
    kind, masked = shape.kind, shape.masked
    query_buffers, query_buffer = shape.query_buffers, shape.query_buffer
    keys, steps_a_tile, stages = shape.keys, shape.steps, shape.stages
    key_chunks, value_chunks = shape.key_chunks, shape.value_chunks
    query_chunk, key_chunk = shape.query_chunk, shape.key_chunk
    key_bytes, value_bytes = key_chunks * key_chunk, value_chunks * key_chunk
    query_bytes = key_chunks * query_chunk
    keys_at, values_at = shape.keys_at, shape.values_at
    masks_at, barriers_at = shape.masks_at, shape.barriers_at
    stage_bits, buffer_bits = stages.bit_length() - 1, query_buffers.bit_length() - 1
    score_count, sum_count, weight_count = keys // 2, shape.width // 2, keys // 4
    sum_quads = sum_count // 4
    sign = -1.0 if shape.negate else 1.0
    natural = math.log(2.0)

    chain = Chain(kind, shape.depth, keys, shape.width, TILE, shape.negate)
    score, add, score_and_add, wait = products(chain)
    mask_scores, start, outgrown, shifts_of, weigh, rescale, pack, quad_sum = softmax_tools(
        kind, keys, shape.width
    )
    compute_exactly = exact_row(kind, shape.depth, shape.width, shape.changes)
    start_changes, enter_changes, bend, _ = tile_change_tools(shape.changes, keys, stacked=True)
    changed = bool(shape.changes)
    store_part = part_writer(shape.width)
    pack_two = pack_pair(kind)
    store_float32 = store_element("float32")
    group_sync, group_any = group_barriers()
    keep_few, keep_many = give_registers(24), take_registers(240)

    # Steps and items are counted from the block's first: a count says which stage or buffer it is, and how
    # often that has been used before. Both ends of a ring count for themselves.
    @cuda.jit(device=True, inline="always")
    def stage_of(turn):
        return int32(turn & (stages - 1))

    @cuda.jit(device=True, inline="always")
    def stage_parity(turn):
        return int32((turn >> stage_bits) & 1)

    @cuda.jit(device=True, inline="always")
    def buffer_of(number):
        return int32(number & (query_buffers - 1))

    @cuda.jit(device=True, inline="always")
    def buffer_parity(number):
        return int32((number >> buffer_bits) & 1)

    @cuda.jit(device=True, inline="always")
    def release_queries(queries_empty, number, mine):
        # The buffer of the item before, once its results have left.
        if query_buffers == 2 and mine == 0 and number != 0:
            wait_for_reads()
            barrier_arrive(uint32(queries_empty + 8 * buffer_of(int32(number - 1))))

    @cuda.jit(device=True, inline="always")
    def change_scores(settings, scores, factor, flags, turn, lane, state):
        if changed:
            first = load_shared_int32(uint32(flags + 4 * (stages + stage_of(turn))))
            bend(settings, scores, scores, factor, int32(first + 2 * (lane & 3)), state)

    @cuda.jit(device=True, inline="always")
    def mask_and_release(scores, flags, word_at, keys_empty, turn, lane):
        stage = stage_of(turn)
        if masked:
            if load_shared_int32(uint32(flags + 4 * stage)) != FULL:
                word = uint32(word_at + stage * MASK_BYTES)
                if steps_a_tile == 2:
                    word = uint32(word + 4 * (turn & 1))
                mask_scores(scores, load_shared_int32(word), load_shared_int32(uint32(word + 4)))
        if lane == 0:
            barrier_arrive(uint32(keys_empty + 8 * stage))

    def kernel(
        maps, work, begins, lse, parts, heads, group, n_q, head_dim, value_dim,
        q, k, v, out,
        q_batch, q_head, q_row, k_batch, k_head, k_row,
        v_batch, v_head, v_row, out_batch, out_head, out_row,
        factor, settings,
    ):  # fmt: skip
        # Trips to memory that begin before there is anything to wait for. To keep the first item from here on
        # would take registers that the copying warpgroup does not have.
        item = int32(cuda.blockIdx.x)
        prefetch(work + WORK_BYTES * int64(item))
        prefetch(work + WORK_BYTES * int64(item) + 32)
        begins += 4 * int64(item)
        last_item = load_int32(begins + 4)
        unit = float32(1.0) if changed else factor
        base = uint32((shared_address(cuda.shared.array(0, uint8)) + 1023) & 0xFFFFFC00)
        queries = base
        queries_full = uint32(base + barriers_at)
        queries_empty = uint32(queries_full + 8 * query_buffers)
        keys_full = uint32(queries_empty + 8 * query_buffers)
        values_full = uint32(keys_full + 8 * stages)
        keys_empty = uint32(values_full + 8 * stages)
        values_empty = uint32(keys_empty + 8 * stages)
        flags = uint32(values_empty + 8 * stages)
        thread = int32(cuda.threadIdx.x)
        # From a shuffle, so that the compiler knows that it is the same for the whole warp.
        warpgroup = int32(from_lane(int32(thread >> 7), 0))
        if thread == 0:
            for buffer in range(query_buffers):
                barrier_init(uint32(queries_full + 8 * buffer), 1)
                barrier_init(uint32(queries_empty + 8 * buffer), _CONSUMERS)
            for stage in range(stages):
                barrier_init(uint32(keys_full + 8 * stage), 1)
                barrier_init(uint32(values_full + 8 * stage), 1)
                barrier_init(uint32(keys_empty + 8 * stage), _CONSUMER_WARPS)
                barrier_init(uint32(values_empty + 8 * stage), _CONSUMER_WARPS)
            fence_barrier_init()
        cuda.syncthreads()

        if warpgroup == _CONSUMERS:
            keep_few()
            if thread == 128 * _CONSUMERS:
                for described in range(3):
                    acquire_map(maps + 128 * described)
                turn, number = int32(0), int32(0)
                while item < last_item:
                    at = work + WORK_BYTES * int64(item)
                    place, list_at, masks = load_int64(at), load_int64(at + 16), load_int64(at + 24)
                    tiles, column, mask = load_int32(at + 8), load_int32(at + 32), load_int32(at + 36)
                    entry = int32(place >> 32)
                    batch = int32(entry // heads)
                    head = int32(entry - batch * heads)
                    key_head = int32(head // group)
                    buffer = buffer_of(number)
                    full = uint32(queries_full + 8 * buffer)
                    barrier_wait(uint32(queries_empty + 8 * buffer), int32(buffer_parity(number) ^ 1))
                    if tiles > 0:
                        barrier_expect(full, query_bytes)
                        row = int32(int32(place) * TILE)
                        for c in range(key_chunks):
                            load_box(
                                uint32(queries + buffer * query_buffer + c * query_chunk), maps, full,
                                c * CHUNK, row, head, batch,
                            )  # fmt: skip
                    else:
                        barrier_arrive(full)
                    tile = int32(0)
                    while tile < tiles:
                        for step in range(steps_a_tile):
                            row = int32(column * TILE + step * keys)
                            stage, parity = stage_of(turn), int32(stage_parity(turn) ^ 1)
                            full = uint32(keys_full + 8 * stage)
                            barrier_wait(uint32(keys_empty + 8 * stage), parity)
                            if changed:
                                store_shared_int32(uint32(flags + 4 * (stages + stage)), row)
                            if masked:
                                store_shared_int32(uint32(flags + 4 * stage), mask)
                                if mask != FULL:
                                    barrier_expect(full, key_bytes + MASK_BYTES)
                                    copy_bytes(
                                        uint32(base + masks_at + stage * MASK_BYTES),
                                        masks + int64(mask) * MASK_BYTES, MASK_BYTES, full,
                                    )  # fmt: skip
                                else:
                                    barrier_expect(full, key_bytes)
                            else:
                                barrier_expect(full, key_bytes)
                            for c in range(key_chunks):
                                load_box(
                                    uint32(base + keys_at + stage * key_bytes + c * key_chunk),
                                    maps + 128, full, c * CHUNK, row, key_head, batch,
                                )  # fmt: skip
                            full = uint32(values_full + 8 * stage)
                            barrier_wait(uint32(values_empty + 8 * stage), parity)
                            barrier_expect(full, value_bytes)
                            for c in range(value_chunks):
                                load_box(
                                    uint32(base + values_at + stage * value_bytes + c * key_chunk),
                                    maps + 256, full, c * CHUNK, row, key_head, batch,
                                )  # fmt: skip
                            turn = int32(turn + 1)
                        tile = int32(tile + 1)
                        if tile < tiles:
                            column = load_int32(list_at + 8 * int64(tile))
                            mask = load_int32(list_at + 8 * int64(tile) + 4)
                    item = load_int32(begins) if number == 0 else int32(item + 1)
                    number = int32(number + 1)
        else:
            keep_many()
            sums = cuda.local.array(sum_count, float32)
            scores = cuda.local.array(score_count, float32)
            weights = cuda.local.array(weight_count, int32)
            consumer = warpgroup
            mine = int32(thread & 127)
            lane = int32(thread & 31)
            if mine == 0:
                acquire_map(maps + 384)
            # Of the 64 rows of a warpgroup, this thread has number `row` and the one 8 further down.
            row = int32(((mine >> 5) << 4) + (lane >> 2))
            # Operands of products are named in units of 16 bytes.
            units = uint32(queries >> 4)
            key_units, value_units = uint32(units + keys_at // 16), uint32(units + values_at // 16)
            word_at = uint32(base + masks_at + thread * 8)
            state = start_changes()
            turn, number = int32(0), int32(0)
            while item < last_item:
                item_at = work + WORK_BYTES * int64(item)
                buffer = buffer_of(number)
                end = int32(turn + load_int32(item_at + 8) * steps_a_tile)
                left = uint32(units + buffer * (query_buffer >> 4) + consumer * (_ROWS * 8))
                for i in range(sum_count):
                    sums[i] = float32(0.0)
                upper, lower = float32(-math.inf), float32(-math.inf)
                upper_sum, lower_sum = float32(0.0), float32(0.0)
                shifts = float32(0.0), float32(0.0), False
                if changed:
                    place = load_int64(item_at)
                    first_row = int32(int32(place) * TILE + consumer * _ROWS)
                    enter_changes(settings, int32(place >> 32) % heads, first_row + row, n_q, state)
                barrier_wait(uint32(queries_full + 8 * buffer), buffer_parity(number))
                stage = stage_of(turn)
                if turn < end:
                    barrier_wait(uint32(keys_full + 8 * stage), stage_parity(turn))
                    score(scores, left, uint32(key_units + stage * (key_bytes >> 4)))
                release_queries(queries_empty, number, mine)
                if turn < end:
                    change_scores(settings, scores, factor, flags, turn, lane, state)
                    mask_and_release(scores, flags, word_at, keys_empty, turn, lane)
                    upper, lower, shifts, upper_sum, lower_sum = start(scores, unit)
                    pack(scores, weights)
                    turn = int32(turn + 1)
                    if turn < end:
                        barrier_wait(uint32(keys_full + 8 * stage_of(turn)), stage_parity(turn))
                    while turn < end:
                        stage, before = stage_of(turn), stage_of(int32(turn - 1))
                        barrier_wait(uint32(values_full + 8 * before), stage_parity(int32(turn - 1)))
                        right = uint32(key_units + stage * (key_bytes >> 4))
                        values = uint32(value_units + before * (value_bytes >> 4))
                        score_and_add(scores, sums, weights, left, right, values)
                        change_scores(settings, scores, factor, flags, turn, lane, state)
                        mask_and_release(scores, flags, word_at, keys_empty, turn, lane)
                        upper, lower, upper_fade, lower_fade, grows = outgrown(scores, unit, upper, lower)
                        if grows:
                            # The only branch for what happens a few times a row.
                            shifts = shifts_of(upper, lower, unit)
                            upper_sum *= upper_fade
                            lower_sum *= lower_fade
                            wait(sums, weights)
                            rescale(sums, upper_fade, lower_fade)
                        upper_sum, lower_sum = weigh(scores, unit, upper, lower, shifts, upper_sum, lower_sum)
                        turn = int32(turn + 1)
                        # Here and not before its use, because the assembler moves the next wait up to
                        # the last branch, and it has to stay behind the exponentials.
                        if turn < end:
                            barrier_wait(uint32(keys_full + 8 * stage_of(turn)), stage_parity(turn))
                        wait(sums, weights)
                        if lane == 0:
                            barrier_arrive(uint32(values_empty + 8 * before))
                        pack(scores, weights)
                    stage = stage_of(int32(turn - 1))
                    barrier_wait(uint32(values_full + 8 * stage), stage_parity(int32(turn - 1)))
                    add(sums, weights, uint32(value_units + stage * (value_bytes >> 4)))
                    if lane == 0:
                        barrier_arrive(uint32(values_empty + 8 * stage))

                upper_sum, lower_sum = quad_sum(upper_sum), quad_sum(lower_sum)
                upper_inverse = float32(1.0) / upper_sum if upper_sum != float32(0.0) else float32(0.0)
                lower_inverse = float32(1.0) / lower_sum if lower_sum != float32(0.0) else float32(0.0)
                # What is not finite shows in a sum of products with 0.
                upper_finite, lower_finite = upper_sum * float32(0.0), lower_sum * float32(0.0)
                for i in range(sum_quads):
                    upper_finite += (sums[4 * i] + sums[4 * i + 1]) * float32(0.0)
                    lower_finite += (sums[4 * i + 2] + sums[4 * i + 3]) * float32(0.0)
                upper_finite, lower_finite = quad_sum(upper_finite), quad_sum(lower_finite)
                spoilt = int32(upper_finite != float32(0.0) or lower_finite != float32(0.0))
                group_sync(consumer)  # no warp reads queries any more
                part = load_int32(item_at + 12)
                if part > 0:
                    store_part(
                        parts, int32(part - 1), int32(consumer * _ROWS + row), lane, sums,
                        upper, lower, upper_sum, lower_sum,
                    )  # fmt: skip
                    if query_buffers == 1 and mine == 0:
                        barrier_arrive(queries_empty)
                else:
                    place = load_int64(item_at)
                    entry = int32(place >> 32)
                    batch = int32(entry // heads)
                    head = int32(entry - batch * heads)
                    first_row = int32(int32(place) * TILE + consumer * _ROWS)
                    # Results take the place of queries.
                    result = uint32(queries + buffer * query_buffer + consumer * (_ROWS * 128))
                    # Row r of 128 bytes; its piece p of 16 bytes lies where piece p ^ (r % 8) would.
                    for i in range(sum_quads):
                        at = uint32(
                            result + (i >> 3) * query_chunk + row * 128
                            + (((i & 7) ^ (row & 7)) << 4) + 4 * (lane & 3)
                        )  # fmt: skip
                        store_shared_int32(
                            at, pack_two(sums[4 * i] * upper_inverse, sums[4 * i + 1] * upper_inverse)
                        )
                        store_shared_int32(
                            uint32(at + 1024),
                            pack_two(sums[4 * i + 2] * lower_inverse, sums[4 * i + 3] * lower_inverse),
                        )
                    fence_async_proxy()
                    spoilt_anywhere = group_any(consumer, spoilt)
                    if mine == 0:
                        for c in range(value_chunks):
                            store_box(
                                uint32(result + c * query_chunk), maps + 384,
                                c * CHUNK, first_row, head, batch,
                            )  # fmt: skip
                        commit_stores()
                        if query_buffers == 1:
                            wait_for_reads()
                            barrier_arrive(queries_empty)
                    if lse != 0 and lane & 3 == 0:
                        lse_at = lse + 4 * (int64(entry) * n_q + first_row + row)
                        if first_row + row < n_q:
                            logarithm = float32(-math.inf)
                            if upper_sum != float32(0.0):
                                logarithm = upper * unit * float32(natural) + math.log(upper_sum)
                            store_float32(lse_at, logarithm)
                        if first_row + row + 8 < n_q:
                            logarithm = float32(-math.inf)
                            if lower_sum != float32(0.0):
                                logarithm = lower * unit * float32(natural) + math.log(lower_sum)
                            store_float32(lse_at + 32, logarithm)
                    if spoilt_anywhere:
                        if mine == 0:
                            wait_for_stores()
                        group_sync(consumer)
                        key_head = int32(head // group)
                        for nth in range(16):
                            holder = int32((nth & 7) << 2)
                            upper_bad = from_lane(int32(upper_finite != float32(0.0)), holder)
                            lower_bad = from_lane(int32(lower_finite != float32(0.0)), holder)
                            bad = upper_bad if nth < 8 else lower_bad
                            local = int32(((mine >> 5) << 4) + nth)
                            query = int64(first_row + local)
                            if bad != 0 and query < n_q:
                                logarithm = compute_exactly(
                                    q + int64(batch) * q_batch + int64(head) * q_head + query * q_row,
                                    k + int64(batch) * k_batch + int64(key_head) * k_head,
                                    v + int64(batch) * v_batch + int64(key_head) * v_head,
                                    out + int64(batch) * out_batch + int64(head) * out_head + query * out_row,
                                    k_row, v_row, head_dim, value_dim,
                                    load_int64(item_at + 16),
                                    load_int64(item_at + 24),
                                    load_int32(item_at + 8),
                                    consumer, local, factor * float32(sign), (settings, head, query, n_q),
                                )  # fmt: skip
                                if lse != 0 and lane == 0:
                                    store_float32(
                                        lse + 4 * (int64(entry) * n_q + query), logarithm * float32(natural)
                                    )
                item = load_int32(begins) if number == 0 else int32(item + 1)
                number = int32(number + 1)
            if mine == 0:
                wait_for_reads()

    return kernel
