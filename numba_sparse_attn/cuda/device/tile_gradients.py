"""Weights and slopes from products in the registers that ``ptx/wgmma.py`` and ``ptx/mma.py`` leave them in.

With lse and delta of each query known, weight = exp2(factor * score - lse) and slope = weight * (product -
delta), where the product is that of incoming gradient and value. Queries are the rows of a tile or, in the
transposed products that make gradients of keys, its columns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda, int64

from . import lanes
from .fragments import fma_float32, pack_pair

__all__ = ["GradientTools", "gradient_tools"]


class GradientTools(NamedTuple):
    """Device functions; see :func:`gradient_tools`."""

    weigh: Callable[..., Any]
    slope: Callable[..., Any]
    pack: Callable[..., Any]


@functools.cache
def gradient_tools(kind: str, columns: int, *, by_column: bool) -> GradientTools:
    """Device functions for scores and products of `columns` columns.

    ``weigh(scores, factor, fixed, at)``: scores become weights; ``slope(weights, products, fixed, at)``:
    products become slopes; ``pack(values, words)`` rounds them. `fixed` has four float32: lse of the upper
    and of the lower row, and delta of either; by column it is room for what is read from the shared address
    `at`, this lane's pair (lse, delta) of its first column and 56 bytes further on its next but one.
    """
    quads = columns // 8
    exp2_float32 = lanes.exp2("float32")
    load_pairs = lanes.load_shared_chunk("float32")
    pack_two = pack_pair(kind)

    if by_column:

        @cuda.jit(device=True, inline="always")
        def weigh(scores, factor, fixed, at):
            for i in range(quads):
                load_pairs(int64(at) + 64 * i, fixed, 0)
                even, odd = -fixed[0], -fixed[2]
                scores[4 * i] = exp2_float32(fma_float32(scores[4 * i], factor, even))
                scores[4 * i + 1] = exp2_float32(fma_float32(scores[4 * i + 1], factor, odd))
                scores[4 * i + 2] = exp2_float32(fma_float32(scores[4 * i + 2], factor, even))
                scores[4 * i + 3] = exp2_float32(fma_float32(scores[4 * i + 3], factor, odd))

        @cuda.jit(device=True, inline="always")
        def slope(weights, products, fixed, at):
            for i in range(quads):
                load_pairs(int64(at) + 64 * i, fixed, 0)
                even, odd = fixed[1], fixed[3]
                products[4 * i] = weights[4 * i] * (products[4 * i] - even)
                products[4 * i + 1] = weights[4 * i + 1] * (products[4 * i + 1] - odd)
                products[4 * i + 2] = weights[4 * i + 2] * (products[4 * i + 2] - even)
                products[4 * i + 3] = weights[4 * i + 3] * (products[4 * i + 3] - odd)

    else:

        @cuda.jit(device=True, inline="always")
        def weigh(scores, factor, fixed, at):
            upper, lower = -fixed[0], -fixed[1]
            for i in range(quads):
                scores[4 * i] = exp2_float32(fma_float32(scores[4 * i], factor, upper))
                scores[4 * i + 1] = exp2_float32(fma_float32(scores[4 * i + 1], factor, upper))
                scores[4 * i + 2] = exp2_float32(fma_float32(scores[4 * i + 2], factor, lower))
                scores[4 * i + 3] = exp2_float32(fma_float32(scores[4 * i + 3], factor, lower))

        @cuda.jit(device=True, inline="always")
        def slope(weights, products, fixed, at):
            upper, lower = fixed[2], fixed[3]
            for i in range(quads):
                products[4 * i] = weights[4 * i] * (products[4 * i] - upper)
                products[4 * i + 1] = weights[4 * i + 1] * (products[4 * i + 1] - upper)
                products[4 * i + 2] = weights[4 * i + 2] * (products[4 * i + 2] - lower)
                products[4 * i + 3] = weights[4 * i + 3] * (products[4 * i + 3] - lower)

    @cuda.jit(device=True, inline="always")
    def pack(values, words):
        for i in range(2 * quads):
            words[i] = pack_two(values[2 * i], values[2 * i + 1])

    return GradientTools(weigh, slope, pack)
