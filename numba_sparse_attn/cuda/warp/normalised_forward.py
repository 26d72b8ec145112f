"""Forward pass with entmax or sigmoid weights, one warp a query: the scores of a whole row, then its weights.

Entmax has no online form: which keys have any weight is known when all scores are. A warp writes the scores
of its row to memory of its own, finds lse there and comes back for the values: 4 bytes a pair are read again
for every step of the search, where computing a score anew would read a row of K. Blocks stay and take one
group of rows after another, so this memory grows with the longest row and not with the number of pairs.

Lanes are laid out as in ``forward.py``, over K in the first walk and over V in the second. A row is one
warp's, however long it is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numba import cuda, float32, float64, int32, int64, types

from ..device import fragments
from ..device import lanes as device
from ..device.rows import head_at, item_at, row_tools
from ..device.walk import make_walk
from ..device.weighing import ENTMAX, make_entmax_search, weighing
from .shape import WarpShape

__all__ = [
    "NORMALISED_SIGNATURE",
    "NORMALISED_THREADS",
    "NormalisedShape",
    "make_normalised_forward",
]

NORMALISED_SIGNATURE = types.void(
    *[types.int64] * 7,  # q, k, v, out, lse (0: not wanted), workspace, steps
    types.int64,  # bytes from one head's lse to the next
    *[types.int64] * 3,  # items, indices, blocks of items
    *[types.int64] * 4,  # heads of this launch: table or 0; number of heads, heads a batch element, group
    *[types.int64] * 3,  # scores that a warp has room for, head_dim, value_dim
    *[types.int64] * 16,  # (batch, head, row, column) strides of q, k, v, out in bytes
    types.float64,  # scale
    types.float64,  # lse of rows with keys for sigmoid weights; NaN: the logarithm of the number of keys
)

#: Threads that a multiprocessor should run at a time.
NORMALISED_THREADS = 1024


@dataclass(frozen=True)
class NormalisedShape:
    """A warp kernel's shape, and the normaliser that it is for.

    Attributes
    ----------
    warp : WarpShape
    rule : {"entmax", "sigmoid"}
    learns : bool
        Backward, by queries: whether the gradient of alpha is asked for.
    """

    warp: WarpShape
    rule: str
    learns: bool = False

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.warp.threads

    @property
    def tile(self) -> int:
        """Rows that are staged in shared memory at a time."""
        return self.warp.tile

    def blocks(self, threads: int) -> int:
        """Blocks that a multiprocessor should run at a time."""
        return self.warp.blocks(threads)


@functools.cache
def make_normalised_forward(shape: NormalisedShape) -> Callable[..., None]:
    """The kernel's Python source, closed over compile-time numbers (compiled by ``launch.py``)."""
    warp_shape, is_entmax = shape.warp, shape.rule == ENTMAX
    kind, sharing, chunk, steps = warp_shape.kind, warp_shape.lanes, warp_shape.chunk, warp_shape.steps
    key_chunks, value_chunks = warp_shape.key_chunks, warp_shape.value_chunks
    key_words, value_words = key_chunks * chunk, value_chunks * chunk
    keys_a_step, warps = warp_shape.keys_a_step, warp_shape.warps
    lane_bits = sharing.bit_length() - 1
    real = float64 if kind == "float64" else float32
    real_bytes = warp_shape.real_bytes
    load_real, store_real = device.load_element(warp_shape.real), device.store_element(warp_shape.real)
    load_score = device.load_written(warp_shape.real)
    xor_lane, sync_warp = device.xor_lane, fragments.sync_warp
    lane_address, load_row, store_row, sum_over_key, sum_over_places = row_tools(
        kind, sharing, chunk, warp_shape.aligned, warp_shape.exact
    )
    weigh, _ = weighing(shape.rule, kind)
    search = make_entmax_search(kind)

    @cuda.jit(device=True, inline="always")
    def take_keys(keys, values, rows, members, left, own):
        """Scores of one round, to the warp's memory; `extremes`: this lane's maximum, and 1 if one is NaN."""
        query, scores, extremes, place, count, part, scale = own
        for s in range(steps):
            scores[s] = real(0.0)
            for e in range(key_words):
                scores[s] += query[e] * keys[s * key_words + e]
        sum_over_key(scores, steps)
        for s in range(steps):
            if s * keys_a_step < left:
                score = real(scores[s] * scale)
                extremes[0] = max(extremes[0], score)
                if score != score:
                    extremes[1] = real(1.0)
                if part == 0:
                    store_real(place + (int64(count) - left + s * keys_a_step) * real_bytes, score)

    @cuda.jit(device=True, inline="always")
    def take_values(values, nothing, rows, members, left, own):
        """Weighted sum of one round; `fixed` is what a score is taken relative to, in two parts."""
        total, fixed, place, count, step = own
        for s in range(steps):
            if s * keys_a_step < left:
                score = load_score(place + (int64(count) - left + s * keys_a_step) * real_bytes)
                weight, _ = weigh(real(real(score - fixed[0]) - fixed[1]), step)
                # Not even multiplied by zero: what has no weight may be NaN.
                if weight != real(0.0):
                    for e in range(value_words):
                        total[e] += weight * values[s * value_words + e]

    over_keys, _ = make_walk(replace(warp_shape, value_chunks=0), take_keys)
    over_values, _ = make_walk(replace(warp_shape, key_chunks=value_chunks, value_chunks=0), take_values)

    def kernel(
        q, k, v, out, lse, workspace, step_table, lse_head, items, indices, blocks,
        table, heads_here, heads, group, room, head_dim, value_dim,
        q_batch, q_head, q_row, q_column, k_batch, k_head, k_row, k_column,
        v_batch, v_head, v_row, v_column, out_batch, out_head, out_row, out_column,
        scale, sigmoid_lse,
    ):  # fmt: skip
        query = cuda.local.array(key_words, real)
        total = cuda.local.array(value_words, real)
        scores = cuda.local.array(steps, real)
        extremes = cuda.local.array(2, real)
        fixed = cuda.local.array(2, real)
        unit = int64(cuda.blockIdx.x)
        while unit < heads_here * blocks:
            number = unit // blocks
            entry, batch, head = head_at(number, table, heads)
            lane, warp, row, begin, count, _ = item_at(items, unit - number * blocks, warps)
            key_head = head // group
            part = lane & (sharing - 1)
            place = workspace + (int64(cuda.blockIdx.x) * warps + warp) * room * real_bytes
            start = q + batch * q_batch + head * q_head + max(row, int64(0)) * q_row
            load_row(lane_address(start, part), q_column, part, key_chunks, head_dim, query, 0)
            extremes[0], extremes[1] = real(-np.inf), real(0.0)
            sync_warp()  # the scores of the row before have been read
            keys = k + batch * k_batch + key_head * k_head
            over_keys(
                keys, 0, k_row, k_column, head_dim, keys, 0, k_row, k_column, 0,
                0, indices, begin, count, lane,
                (query, scores, extremes, place, count, part, real(scale)),
            )  # fmt: skip
            sync_warp()
            distance = int32(1)
            while distance < int32(32):
                extremes[0] = max(extremes[0], xor_lane(extremes[0], distance))
                extremes[1] += xor_lane(extremes[1], distance)
                distance <<= int32(1)
            step = load_real(step_table + head * real_bytes)
            logarithm = real(-np.inf)
            fixed[0], fixed[1] = real(0.0), real(0.0)
            if count > 0:
                if is_entmax:
                    peak = extremes[0]
                    # A score that is not a number, or no largest one: the whole row is NaN.
                    if extremes[1] != real(0.0) or peak - peak != real(0.0):
                        fixed[0] = real(np.nan)
                    else:
                        fixed[0] = peak
                        fixed[1] = real(search(place, count, lane, peak, step))
                    logarithm = real(fixed[0] + fixed[1])
                else:
                    logarithm = real(sigmoid_lse)
                    if sigmoid_lse != sigmoid_lse:
                        logarithm = real(math.log(float64(count)))
                    fixed[0] = logarithm
            for e in range(value_words):
                total[e] = real(0.0)
            values = v + batch * v_batch + key_head * v_head
            over_values(
                values, 0, v_row, v_column, value_dim, values, 0, v_row, v_column, 0,
                0, indices, begin, count, lane,
                (total, fixed, place, count, step),
            )  # fmt: skip
            sum_over_places(total, value_words)
            if row >= 0:
                if lse != 0 and lane == 0:
                    store_real(lse + entry * lse_head + row * real_bytes, logarithm)
                if lane >> lane_bits == 0:
                    start = out + batch * out_batch + head * out_head + row * out_row
                    target = lane_address(start, part)
                    store_row(target, out_column, part, value_chunks, value_dim, total)
            unit += int64(cuda.gridDim.x)

    return kernel
