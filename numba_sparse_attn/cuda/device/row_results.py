"""From a thread's sums of two rows to results: normalising, lse, and which rows a matrix product has spoilt.

The layout is that of ``tile_softmax.py``: elements e of `sums` with e // 2 even are of the upper row.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda, float32

from . import lanes

__all__ = ["ResultTools", "result_tools"]


class ResultTools(NamedTuple):
    """Device functions; see :func:`result_tools`."""

    inverse: Callable[..., Any]
    logarithm: Callable[..., Any]
    blemish: Callable[..., Any]


@functools.cache
def result_tools(width: int) -> ResultTools:
    """Device functions for sums of `width` values.

    ``inverse(weight)``: 1 over the sum of a row's weights, 0 for a row without keys;
    ``logarithm(maximum, weight, factor)``: the row's lse, for weights of base 2 relative to factor * maximum;
    ``blemish(sums, upper_weight, lower_weight)``: for either row of the quad a number that is 0 if all of its
    sums and its weight are finite, and NaN otherwise.
    """
    quads = width // 8
    xor_lane = lanes.xor_lane
    natural = math.log(2.0)

    @cuda.jit(device=True, inline="always")
    def inverse(weight):
        return float32(1.0) / weight if weight != float32(0.0) else float32(0.0)

    @cuda.jit(device=True, inline="always")
    def logarithm(maximum, weight, factor):
        if weight == float32(0.0):
            return float32(-math.inf)
        return float32(maximum * factor * float32(natural) + float32(math.log(weight)))

    @cuda.jit(device=True, inline="always")
    def blemish(sums, upper_weight, lower_weight):
        # What is not finite shows in a sum of products with 0.
        upper, lower = upper_weight * float32(0.0), lower_weight * float32(0.0)
        for i in range(quads):
            upper += (sums[4 * i] + sums[4 * i + 1]) * float32(0.0)
            lower += (sums[4 * i + 2] + sums[4 * i + 3]) * float32(0.0)
        upper += xor_lane(upper, 1)
        lower += xor_lane(lower, 1)
        return upper + xor_lane(upper, 2), lower + xor_lane(lower, 2)

    return ResultTools(inverse, logarithm, blemish)
