"""Places of the largest scores of every row, ascending; one warp a row.

Scores are compared as the whole numbers that their bits are, so that a search by halves finds the least of
the chosen exactly: it counts, with one vote of the warp for every 32 scores, how many are at least as large
as a bound, and ends when these are as many as are wanted. A second pass writes their places in order. As on
the host, NaN counts as -inf, and of equal scores the first come first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from numba import cuda, int32, int64, types, uint32

from ..device.lanes import ballot, load_int32, load_int64, store_int32
from ..device.rows import own_head
from .rows import limit_of

__all__ = ["BEST_SIGNATURE", "BEST_WARPS", "make_best"]

BEST_SIGNATURE = types.void(
    *[types.int64] * 2,  # scores, contiguous: [entries, rows, columns]; places of the first row
    *[types.int64] * 2,  # budgets, int32, one for every head of a batch element; or 0 and one for all
    *[types.int64] * 2,  # entries, heads of a batch element
    *[types.int64] * 5,  # the first row, rows, columns, rows of an entry in `places`, width
    *[types.int64] * 6,  # limits
    *[types.int64] * 3,  # blocks that are in before all others
)

#: Warps, hence rows, of a block.
BEST_WARPS = 4


@functools.cache
def make_best(kind: str) -> Callable[..., None]:
    """The kernel's Python source, for scores of float32 or float64."""
    size = 8 if kind == "float64" else 4
    infinity = 0x7FF << 52 if kind == "float64" else 0xFF << 23
    sign = (1 << 63) - 1 if kind == "float64" else (1 << 31) - 1
    load = load_int64 if kind == "float64" else load_int32

    @cuda.jit(device=True, inline="always")
    def rank_at(place):
        """A whole number that orders scores as the numbers that they are; both zeros have one."""
        bits = int64(load(place))
        magnitude = bits & int64(sign)
        if magnitude > infinity:
            return int64(-infinity)
        return -magnitude if bits < 0 else magnitude

    def kernel(
        scores, places, budgets, budget, entries, heads, first_row, rows, columns, listed, width,
        queries, per_row, offset, extra, divisor, most, block, first, local,
    ):  # fmt: skip
        number, _, _, head = own_head(int64(0), heads)
        lane = int32(cuda.threadIdx.x & 31)
        row = int64(cuda.blockIdx.x) * BEST_WARPS + (cuda.threadIdx.x >> 5)
        if number >= entries or row >= rows:
            return
        scores += size * (number * rows + row) * columns
        places += 4 * (number * listed + row) * width
        row += first_row
        limit = limit_of(row, queries, per_row, offset, extra, divisor, most)
        own = limit
        if local > 0:
            own = max(row * per_row + offset, int64(0)) // block - local + 1
        forced = min(first, limit) + max(limit - max(own, first), int64(0))
        if budgets != 0:
            budget = int64(load_int32(budgets + 4 * head))
        wanted = min(max(budget, forced), limit) - forced
        # At least as large as `low` are more than wanted, and as `high` no more than `above`, fewer.
        low, high, above = int64(-infinity), int64(infinity) + 1, int64(0)
        if wanted == limit - forced:
            high, above = low, wanted
        elif wanted == 0:
            low = high
        while above < wanted and low + 1 < high:
            middle = (low >> 1) + (high >> 1) + (low & high & 1)
            count = int64(0)
            base = int64(0)
            while base < limit:
                place = base + lane
                passes = False
                if place < limit and place < own and place >= first:
                    passes = rank_at(scores + size * place) >= middle
                count += cuda.popc(uint32(ballot(passes)))
                base += 32
            if count > wanted:
                low = middle
            else:
                high, above = middle, count
        # Now fewer than are wanted pass, or exactly those; what is missing are the first that equal `low`.
        missing = wanted - above
        before = uint32((int64(1) << lane) - 1)
        written = int64(0)
        base = int64(0)
        while base < limit:
            place = base + lane
            passes, equal = False, False
            if place < limit:
                if place >= own or place < first:
                    passes = True
                else:
                    rank = rank_at(scores + size * place)
                    passes = rank >= high
                    equal = rank >= low and not passes
            if missing > 0:
                votes = uint32(ballot(equal))
                if equal and cuda.popc(uint32(votes & before)) < missing:
                    passes = True
                missing -= cuda.popc(votes)
            votes = uint32(ballot(passes))
            if passes:
                store_int32(places + 4 * (written + cuda.popc(uint32(votes & before))), int32(place))
            written += cuda.popc(votes)
            base += 32
        rest = written + lane
        while rest < width:
            store_int32(places + 4 * rest, int32(-1))
            rest += 32

    return kernel
