"""Online softmax of scores in the registers that ``ptx/wgmma.py`` and ``ptx/mma.py`` leave them in.

A thread has two rows, 8 apart, and shares each with the three other lanes of its quad. Per row it keeps the
maximum on which its weights are based and its own part of their sum. Weights are exp2(factor * score - shift)
with shift = factor * maximum: one fused multiply-add and one exponential an element.

The maximum stays as it is until a score exceeds it by a factor of 2**8. That is exact, since all weights of a
row have the same base and the base cancels; weights then reach 2**8 instead of 1, far from the largest
float16, and the sums of values are rescaled a few times a row instead of in every step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda, float32

from . import lanes
from .fragments import any_lane, fma_float32, keep_by_bits, max_float32, pack_pair

__all__ = ["SoftmaxTools", "softmax_tools"]

#: Growth of a maximum, in powers of two, from which on it is taken over.
_PATIENCE = 8.0
#: Shift from which on its rounding shows in weights of 16 bits: the largest weight would not be 1 but a
#: number that 16 bits do not hold and the sum of weights does. Then the maximum is subtracted first.
_FAR = 2048.0


class SoftmaxTools(NamedTuple):
    """Device functions; see :func:`softmax_tools`."""

    mask: Callable[..., Any]
    start: Callable[..., Any]
    outgrown: Callable[..., Any]
    shifts_of: Callable[..., Any]
    weigh: Callable[..., Any]
    rescale: Callable[..., Any]
    pack: Callable[..., Any]
    quad_sum: Callable[..., Any]


@functools.cache
def softmax_tools(kind: str, columns: int, width: int) -> SoftmaxTools:
    """Device functions for scores of `columns` keys and sums of `width` values.

    ``mask(scores, low, high)``: by the thread's mask word, in two halves (one, up to 64 keys);
    ``start(scores, factor)`` -> maxima, shifts and sums of both rows; scores become weights;
    ``outgrown(scores, factor, maxima)`` -> maxima, fading factors, whether any in the warp is not 1;
    ``shifts_of(maxima, factor)`` -> what to hand to ``weigh(scores, factor, maxima, shifts, sums)`` -> sums;
    ``rescale(sums, fading)``, ``pack(scores, weights)``.
    """
    quads, value_quads = columns // 8, width // 8
    xor_lane = lanes.xor_lane
    exp2_float32 = lanes.exp2("float32")
    pack_two = pack_pair(kind)
    keep_low = keep_by_bits(0, min(columns // 2, 32))
    keep_high = keep_by_bits(32, 32) if columns == 128 else None
    infinite = float32(math.inf)

    if columns == 128:

        @cuda.jit(device=True, inline="always")
        def mask(scores, low, high):
            keep_low(scores, low)
            keep_high(scores, high)

    else:

        @cuda.jit(device=True, inline="always")
        def mask(scores, low, high):
            keep_low(scores, low)

    @cuda.jit(device=True, inline="always")
    def largest_of(scores, upper, lower):
        # Four chains a row: with one, this took 5 cycles an element, waiting for the maximum before.
        upper_1 = upper_2 = upper_3 = upper
        lower_1 = lower_2 = lower_3 = lower
        for i in range(0, quads, 2):
            upper = max_float32(upper, scores[4 * i])
            upper_1 = max_float32(upper_1, scores[4 * i + 1])
            lower = max_float32(lower, scores[4 * i + 2])
            lower_1 = max_float32(lower_1, scores[4 * i + 3])
            upper_2 = max_float32(upper_2, scores[4 * i + 4])
            upper_3 = max_float32(upper_3, scores[4 * i + 5])
            lower_2 = max_float32(lower_2, scores[4 * i + 6])
            lower_3 = max_float32(lower_3, scores[4 * i + 7])
        upper = max_float32(max_float32(upper, upper_1), max_float32(upper_2, upper_3))
        lower = max_float32(max_float32(lower, lower_1), max_float32(lower_2, lower_3))
        upper = max_float32(upper, xor_lane(upper, 1))
        lower = max_float32(lower, xor_lane(lower, 1))
        return max_float32(upper, xor_lane(upper, 2)), max_float32(lower, xor_lane(lower, 2))

    @cuda.jit(device=True, inline="always")
    def subtract(scores, first, maximum):
        for i in range(quads):
            scores[4 * i + first] -= maximum
            scores[4 * i + first + 1] -= maximum

    @cuda.jit(device=True, inline="always")
    def shifts_of(upper, lower, factor):
        # With nothing but -inf so far, any finite shift gives weights of 0 instead of NaN.
        upper_shift = -upper * factor if upper != -infinite else float32(0.0)
        lower_shift = -lower * factor if lower != -infinite else float32(0.0)
        return upper_shift, lower_shift, max_float32(abs(upper_shift), abs(lower_shift)) > float32(_FAR)

    @cuda.jit(device=True, inline="always")
    def weigh(scores, factor, upper, lower, shifts, upper_sum, lower_sum):
        upper_shift, lower_shift, far = shifts
        if far:
            if upper_shift != float32(0.0):
                subtract(scores, 0, upper)
                upper_shift = float32(0.0)
            if lower_shift != float32(0.0):
                subtract(scores, 2, lower)
                lower_shift = float32(0.0)
        for i in range(quads):
            scores[4 * i] = exp2_float32(fma_float32(scores[4 * i], factor, upper_shift))
            scores[4 * i + 1] = exp2_float32(fma_float32(scores[4 * i + 1], factor, upper_shift))
            scores[4 * i + 2] = exp2_float32(fma_float32(scores[4 * i + 2], factor, lower_shift))
            scores[4 * i + 3] = exp2_float32(fma_float32(scores[4 * i + 3], factor, lower_shift))
            upper_sum += scores[4 * i] + scores[4 * i + 1]
            lower_sum += scores[4 * i + 2] + scores[4 * i + 3]
        return upper_sum, lower_sum

    @cuda.jit(device=True, inline="always")
    def start(scores, factor):
        upper, lower = largest_of(scores, -infinite, -infinite)
        shifts = shifts_of(upper, lower, factor)
        upper_sum, lower_sum = weigh(scores, factor, upper, lower, shifts, float32(0.0), float32(0.0))
        return upper, lower, shifts, upper_sum, lower_sum

    @cuda.jit(device=True, inline="always")
    def outgrown(scores, factor, upper, lower):
        new_upper, new_lower = largest_of(scores, upper, lower)
        upper_grows = (new_upper - upper) * factor > float32(_PATIENCE)
        lower_grows = (new_lower - lower) * factor > float32(_PATIENCE)
        upper_fade = lower_fade = float32(1.0)
        grows = any_lane(upper_grows or lower_grows)
        if grows:
            if upper_grows:
                upper_fade = exp2_float32((upper - new_upper) * factor)
                upper = new_upper
            if lower_grows:
                lower_fade = exp2_float32((lower - new_lower) * factor)
                lower = new_lower
        return upper, lower, upper_fade, lower_fade, grows

    @cuda.jit(device=True, inline="always")
    def rescale(sums, upper_fade, lower_fade):
        for i in range(value_quads):
            sums[4 * i] *= upper_fade
            sums[4 * i + 1] *= upper_fade
            sums[4 * i + 2] *= lower_fade
            sums[4 * i + 3] *= lower_fade

    @cuda.jit(device=True, inline="always")
    def pack(scores, weights):
        for i in range(2 * quads):
            weights[i] = pack_two(scores[2 * i], scores[2 * i + 1])

    @cuda.jit(device=True, inline="always")
    def quad_sum(value):
        value += xor_lane(value, 1)
        return value + xor_lane(value, 2)

    return SoftmaxTools(mask, start, outgrown, shifts_of, weigh, rescale, pack, quad_sum)
