"""From scores to weights where softmax does not do it: entmax and sigmoid, a whole row at a time.

A normaliser is one number a head here, its *step*: alpha - 1 for entmax, 0 for sigmoid. Weights follow from
score - lse, where lse is one number a row: see :mod:`numba_sparse_attn.normalisers`. Scores are made from the
products of the gathering intrinsics in the same way wherever they are needed, so a pair that has no weight in
one sweep has none in the others.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..formats.work import Request
from ..jit import inlined
from .gather import GROUP, gather_axpy
from .row_work import LIST_COLUMNS, LOG2_E
from .vector import exp2_sum

__all__ = [
    "DQ",
    "KEYS",
    "LSE",
    "OUT",
    "QUERY",
    "SIGMOID",
    "TABLE_COLUMNS",
    "add_rows",
    "close_list",
    "entmax_lse",
    "entmax_power",
    "logistic",
    "own_lse",
    "steps_of",
]

#: The step of a head that has sigmoid weights.
SIGMOID = 0.0

#: Columns of a table of heads behind those of the lists: addresses of joined K and V, of q (joined with dout
#: in the backward pass), of out, lse and dq.
KEYS, QUERY, OUT, LSE, DQ = range(LIST_COLUMNS, LIST_COLUMNS + 5)
TABLE_COLUMNS = LIST_COLUMNS + 5

#: Rows that are added up apart before they join a sum: a long row has the rounding errors of a blocked sum.
_PIECE = 512

#: Newton steps before every second step halves the interval instead. Rows of 4096 normal scores take 4 to 9;
#: what is built to take more (scores that double from key to key) is found by halving.
_PLAIN_STEPS = 12
_MOST_STEPS = 200


def steps_of(request: Request) -> npt.NDArray[np.float64]:
    """The step of every head of every batch element."""
    assert request.normaliser is not None
    steps = [request.normaliser.step_of(head) for head in range(request.heads)]
    return np.tile(np.array(steps), request.batch)


@inlined
def entmax_power(base, step):
    """base ** (1 / step) for a base above 0."""
    if step == 1.0:
        return base
    if step == 0.5:
        return base * base
    return math.exp(math.log(base) / step)


@inlined
def entmax_lse(products, count, scale, step, kept):
    """lse of a row of `count` >= 1 scores ``scale * products``; `kept` is scratch for as many float64.

    With x the scores less the largest and z_j = 1 + step (x_j - u), it is the u at which the norm of z of
    order 1 / step is 1. The norm is convex and falls in u, so Newton's method, started at 0 on the left of
    that point, comes closer with every step and never passes it: what has no weight on the way never gets any
    and is dropped. Equal scores and, as step goes to 0, any scores take one step.
    """
    peak = -np.inf
    lost = False
    for i in range(count):
        score = scale * np.float64(products[i])
        lost = lost or math.isnan(score)
        peak = max(peak, score)
    # A score that is not a number, or no largest one that others could be compared with.
    if lost or not math.isfinite(peak):
        return np.nan
    left = 0
    reach = -1.0 / step
    for i in range(count):
        x = scale * np.float64(products[i]) - peak
        if x > reach:
            kept[left] = x
            left += 1
    low = 0.0
    high = (1.0 - math.pow(np.float64(left), -step)) / step
    ahead = 0.0
    for turn in range(_MOST_STEPS):
        halved = turn > _PLAIN_STEPS and turn % 2 == 0
        place = 0.5 * (low + high) if halved else ahead
        total = 0.0
        slope = 0.0
        for i in range(left):
            z = 1.0 + step * (kept[i] - place)
            if z > 0.0:
                weight = entmax_power(z, step)
                total += weight
                slope += weight / z
        if total < 1.0:
            if not halved:
                return peak + place  # Newton passes the point by rounding only: it is there
            high = place
            continue
        low = place
        ahead = place + total * (1.0 - math.pow(total, -step)) / (step * slope)
        if ahead <= low:
            break
        reach = low - 1.0 / step
        still = 0
        for i in range(left):
            if kept[i] > reach:
                kept[still] = kept[i]
                still += 1
        left = still
    return peak + low


@inlined
def own_lse(products, count, scale, step, sigmoid_lse, kept):
    """lse of a row of `count` >= 1 keys; a `sigmoid_lse` of NaN stands for the logarithm of their number."""
    if step != SIGMOID:
        return entmax_lse(products, count, scale, step, kept)
    if math.isnan(sigmoid_lse):
        return math.log(np.float64(count))
    return sigmoid_lse


@inlined
def logistic(scratch, values, address, count):
    """values[i] = 1 / (1 + exp(-values[i])); `address` is that of `values`, a part of `scratch`."""
    kind = scratch.dtype.type
    exp2_sum(scratch, address, count, kind(0.0), kind(-LOG2_E))
    for i in range(count):
        values[i] = kind(1.0) / (kind(1.0) + values[i])


@inlined
def close_list(lists, count):
    """Make a list of `count` >= 1 addresses end with a whole group."""
    for i in range(GROUP):
        lists[count + i] = lists[count - 1]


@inlined
def add_rows(scratch, weights, named, offset, count, vectors, target):
    """target += weights times the rows of a list, in pieces."""
    begin = 0
    while begin < count:
        size = min(count - begin, _PIECE)
        place = weights + begin * scratch.itemsize
        gather_axpy(scratch, place, named + 8 * begin, offset, size, vectors, target)
        begin += _PIECE
