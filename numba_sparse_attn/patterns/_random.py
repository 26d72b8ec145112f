"""Random choices that are the same on every machine, from a counter-based integer hash.

Row r of seed s has its own stream of 64-bit words: splitmix64 started at the (r + 1)-th word of the
splitmix64 stream that starts at s. A choice of `count` out of `limit` is the first `count` distinct
values of the words modulo `limit`. Only integer arithmetic modulo 2**64 is involved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = ["chosen", "distinct_choices", "splitmix64", "words"]

_INCREMENT = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
#: Words drawn at a time: bounds the memory that a long pattern needs while it is made.
_WORDS = 1 << 20


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The output function of splitmix64; arrays wrap around silently."""
    state = (state ^ (state >> np.uint64(_SHIFTS[0]))) * np.uint64(_FACTORS[0])
    state = (state ^ (state >> np.uint64(_SHIFTS[1]))) * np.uint64(_FACTORS[1])
    return state ^ (state >> np.uint64(_SHIFTS[2]))


def words(start: npt.NDArray[np.uint64], numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Words `numbers` (from 0) of the splitmix64 streams that start at `start`."""
    return _mix(start + (numbers + 1).astype(np.uint64) * np.uint64(_INCREMENT))


def distinct_choices(
    seed: int,
    rows: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    limits: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For every row, `counts` distinct numbers from 0 to ``limits - 1``, ascending.

    Parameters
    ----------
    seed : int
    rows : int64 [rows]
        Number of each row's stream.
    counts, limits : int64 [rows]
        ``0 <= counts <= limits``.

    Returns
    -------
    indptr : int64 [rows + 1]
    choices : int64 [sum of counts]
    """
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    choices = np.empty(int(indptr[-1]), np.int64)
    streams = words(np.full(len(rows), seed, np.uint64), rows)
    draws = _likely_draws(counts, limits)
    step = max(1, _WORDS // draws)
    for begin in range(0, len(rows), step):
        panel = slice(begin, begin + step)
        choices[indptr[begin] : indptr[min(begin + step, len(rows))]] = _choose(
            streams[panel], counts[panel], limits[panel], draws
        )
    return indptr, choices


def _likely_draws(counts: npt.NDArray[np.int64], limits: npt.NDArray[np.int64]) -> int:
    """How many words hold enough distinct values, nearly always; a guess that changes no result."""
    draws = 1
    for count, limit in np.unique(np.stack([counts, limits], axis=1), axis=0).tolist():
        if count:
            expected = limit * math.log((limit + 1) / (limit + 1 - count))
            draws = max(draws, int(expected + 6 * math.sqrt(expected)) + 4)
    return draws


def _choose(
    streams: npt.NDArray[np.uint64], counts: npt.NDArray[np.int64], limits: npt.NDArray[np.int64], draws: int
) -> npt.NDArray[np.int64]:
    moduli = np.maximum(limits, 1).astype(np.uint64)[:, None]
    while True:
        values = (words(streams[:, None], np.arange(draws)) % moduli).astype(np.int64)
        order = np.argsort(values, axis=1, kind="stable")
        ascending = np.take_along_axis(values, order, axis=1)
        first = np.ones_like(order, np.bool_)
        first[:, 1:] = ascending[:, 1:] != ascending[:, :-1]
        drawn_first = np.empty_like(first)
        np.put_along_axis(drawn_first, order, first, axis=1)
        rank = np.cumsum(drawn_first, axis=1)
        if (rank[:, -1] >= counts).all():
            break
        draws *= 2
    taken = drawn_first & (rank <= counts[:, None])
    return ascending[np.take_along_axis(taken, order, axis=1)]


def splitmix64(start: int) -> Iterator[int]:
    """The words of one stream in plain Python: the definition that the arrays are tested against."""
    state = start
    while True:
        state = (state + _INCREMENT) % 2**64
        word = state
        for shift, factor in zip(_SHIFTS, (*_FACTORS, 1), strict=True):
            word = (word ^ (word >> shift)) * factor % 2**64
        yield word


@lru_cache(maxsize=1 << 12)
def chosen(seed: int, row: int, count: int, limit: int) -> frozenset[int]:
    """One row of :func:`distinct_choices`, by definition."""
    stream = splitmix64(seed)
    for _ in range(row):
        next(stream)
    values: set[int] = set()
    words = splitmix64(next(stream))
    while len(values) < min(count, limit):
        values.add(next(words) % limit)
    return frozenset(values)
