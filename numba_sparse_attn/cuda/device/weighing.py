"""Entmax and sigmoid weights of single pairs, and the search for entmax's lse, by a warp.

A normaliser is its *step* here, one number a head: alpha - 1. Weights follow from score - lse: see
:mod:`numba_sparse_attn.normalisers`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from numba import cuda, float32, float64, int32, int64

from . import lanes

__all__ = ["ENTMAX", "SIGMOID", "Weighing", "make_entmax_search", "weighing"]

ENTMAX, SIGMOID = "entmax", "sigmoid"

#: Newton steps before every second step halves the interval instead, and steps in all.
_PLAIN_STEPS = 12
_MOST_STEPS = 128


class Weighing(NamedTuple):
    """Device functions; see :func:`weighing`."""

    weigh: Callable[..., Any]
    of_alpha: Callable[..., Any]


@functools.cache
def weighing(rule: str, kind: str) -> Weighing:
    """Device functions in the accumulator type of `kind`.

    ``weigh(distance, step)``: weight and slope of a pair with this score - lse, both 0 for one without weight
    and NaN for NaN; ``of_alpha(distance, step)``: derivative of the weight of a pair that has some, with
    respect to alpha at a fixed lse. It is a small difference, taken in float64.
    """
    real = float64 if kind == "float64" else float32
    exp2 = lanes.exp2(kind)
    log2_e = 1.0 / math.log(2.0)

    @cuda.jit(device=True, inline="always")
    def weigh_entmax(distance, step):
        y = real(step * distance)
        weight, slope = real(0.0), real(0.0)
        if not y <= real(-1.0):
            z = real(real(1.0) + y)
            if step == real(1.0):
                weight, slope = z, real(1.0)
            elif step == real(0.5):
                weight, slope = real(z * z), z
            else:
                weight = real(math.exp(real(real(math.log1p(y)) / step)))
                slope = real(weight / z)
            if y != y:
                weight, slope = y, y
        return weight, slope

    @cuda.jit(device=True, inline="always")
    def weigh_sigmoid(distance, step):
        weight = real(real(1.0) / (real(1.0) + exp2(real(distance * real(-log2_e)))))
        return weight, real(weight * (real(1.0) - weight))

    @cuda.jit(device=True, inline="always")
    def of_alpha(distance, step):
        power = float64(step)
        y = power * float64(distance)
        logarithm = math.log1p(y)
        weight = math.exp(logarithm / power)
        return (weight * y / (1.0 + y) - weight * logarithm) / (power * power)

    return Weighing(weigh_entmax if rule == ENTMAX else weigh_sigmoid, of_alpha)


@functools.cache
def make_entmax_search(kind: str) -> Callable[..., Any]:
    """Device function ``(scores, count, lane, peak, step)``: how far lse lies above the largest score.

    `scores` is the address of `count` scores in the accumulator type of `kind`, written by the warp itself;
    `peak` is the largest. As on the host (``cpu/normalising.py``): Newton's method on a norm that is convex
    and falls, started on the left of the answer, which it so never passes but by rounding. Sums are in
    float64, and have the same bits in every lane.
    """
    bytes_each = 8 if kind == "float64" else 4
    load = lanes.load_written("float64" if kind == "float64" else "float32")
    xor_lane, from_lane = lanes.xor_lane, lanes.from_lane
    tolerance = 1.0 + (2.0**-50 if kind == "float64" else 2.0**-24)

    @cuda.jit(device=True, inline="always")
    def search(scores, count, lane, peak, step):
        power = float64(step)
        low, ahead = float64(0.0), float64(0.0)
        high = (1.0 - math.exp(-power * math.log(float64(count)))) / power
        place = float64(0.0)
        turn = int32(0)
        while turn < int32(_MOST_STEPS):
            halved = turn > int32(_PLAIN_STEPS) and turn % int32(2) == int32(0)
            place = 0.5 * (low + high) if halved else ahead
            total, slope = float64(0.0), float64(0.0)
            i = int64(lane)
            while i < count:
                y = power * (float64(load(scores + i * bytes_each)) - float64(peak) - place)
                if y > -1.0:
                    z = 1.0 + y
                    if power == 1.0:
                        total += z
                        slope += 1.0
                    elif power == 0.5:
                        total += z * z
                        slope += z
                    else:
                        weight = math.exp(math.log1p(y) / power)
                        total += weight
                        slope += weight / z
                i += int64(32)
            distance = int32(1)
            while distance < int32(32):
                total += xor_lane(total, distance)
                slope += xor_lane(slope, distance)
                distance <<= int32(1)
            total = from_lane(total, 0)
            turn = int32(turn + 1)
            if total < 1.0 and halved:
                high = place
            elif total < tolerance:
                turn = int32(_MOST_STEPS)
            else:
                low = place
                ahead = place + total * (1.0 - math.exp(-power * math.log(total))) / (power * slope)
        return place

    return search
