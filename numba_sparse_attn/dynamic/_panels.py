"""Scores of some queries with all keys at a time, and the choice of the largest: never an n x n array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..jit import for_each, inlined, kernel

__all__ = [
    "Floats",
    "Integers",
    "best_of_panels",
    "best_place",
    "for_each_panel",
    "for_each_rows",
    "largest",
    "scores_of",
    "softmax_rows",
]

Floats = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]

#: Scores of a panel: 16 MiB in float32, one for each thread.
_SCORES = 1 << 22
#: Rows of a panel: beyond that a product gets no faster.
_ROWS = 256
#: Scores that are passed over at once where none of them is large enough.
_RUN = 64


def for_each_panel(
    queries: Floats, keys: Floats, limits: Integers, work: Callable[[slice, Floats], None]
) -> None:
    """Call ``work(rows, scores)`` with ``queries[rows] @ keys.T`` for all rows, on several threads.

    Parameters
    ----------
    queries, keys : [n_q, d], [n_k, d]
    limits : int64 [n_q]
        Keys that count for each query: the scores end with the panel's largest.
    work : callable
        May write to the scores.
    """
    for_each_rows(
        len(queries), len(keys), lambda rows: work(rows, scores_of(queries[rows], keys, limits[rows]))
    )


def for_each_rows(rows: int, columns: int, work: Callable[[slice], None]) -> None:
    """Call `work` with slices of a number of rows, few enough to hold scores with `columns` keys."""
    step = max(1, min(_ROWS, _SCORES // max(1, columns)))
    # The last queries see most keys in causal patterns: they start first, so that threads end together.
    for_each(
        lambda begin, worker: work(slice(begin, min(begin + step, rows))), reversed(range(0, rows, step))
    )


def scores_of(queries: Floats, keys: Floats, limits: Integers) -> Floats:
    """``queries @ keys.T`` with as many keys as any of the queries may see."""
    # Keys may hold NaN and infinity; what comes of them is looked at by who ranks the scores.
    with np.errstate(all="ignore"):
        return np.asarray(queries @ keys[: limits.max(initial=0)].T)


def softmax_rows(scores: Floats, limits: Integers) -> Floats:
    """Softmax in place over the first ``limits[row]`` scores of every row; 0 elsewhere, and without keys.

    A NaN score weighs nothing: one such key must not decide what a query thinks of all others.
    """
    first = int(limits.min(initial=scores.shape[1]))
    scores[:, first:][np.arange(first, scores.shape[1]) >= limits[:, None]] = -np.inf
    scores[np.isnan(scores)] = -np.inf
    with np.errstate(all="ignore"):
        peak = scores.max(axis=1, keepdims=True, initial=-np.inf)
        np.exp(np.subtract(scores, peak, out=scores), out=scores)
        np.divide(scores, scores.sum(axis=1, keepdims=True), out=scores)
    scores[np.isneginf(peak[:, 0])] = 0.0
    return scores


def largest(scores: Floats, limits: Integers, budgets: Integers) -> npt.NDArray[np.int32]:
    """Places of the ``budgets[row]`` largest of the first ``limits[row]`` scores of every row.

    Ascending, padded with -1. Of equal scores the first count as larger; NaN counts as -inf.

    Examples
    --------
    >>> import numpy as np
    >>> scores = np.array([[1.0, 3.0, 2.0, 3.0], [0.0, np.nan, 1.0, 9.0]])
    >>> largest(scores, np.array([4, 3]), np.array([2, 2])).tolist()
    [[1, 3], [0, 2]]
    """
    chosen = np.empty((len(scores), int(budgets.max(initial=0))), np.int32)
    _largest(np.ascontiguousarray(scores), limits, budgets, chosen)
    return chosen


def best_of_panels(
    queries: Floats, keys: Floats, limits: Integers, budgets: Integers
) -> npt.NDArray[np.int32]:
    """Keys of the largest ``queries @ keys.T`` of every query, as :func:`largest` lists them."""
    width = int(np.minimum(budgets, limits).max(initial=0))
    chosen = np.full((len(queries), width), -1, np.int32)

    def work(rows: slice, scores: Floats) -> None:
        _largest(scores, limits[rows], budgets[rows], chosen[rows])

    if width:
        for_each_panel(queries, keys, limits, work)
    return chosen


def best_place(rows: Floats, directions: Floats) -> Integers:
    """For every row, the number of the direction with the largest product; there is at least one.

    Examples
    --------
    >>> import numpy as np
    >>> best_place(np.array([[1.0, 2.0], [0.0, 0.0], [np.nan, 1.0]]), np.eye(2)).tolist()
    [1, 0, 0]
    """
    ones = np.ones(len(rows), np.int64)
    return best_of_panels(rows, directions, len(directions) * ones, ones).reshape(-1).astype(np.int64)


@kernel
def _largest(scores, limits, budgets, chosen):
    """A heap of the best so far, its worst on top; a second pass over the row lists them in order."""
    width = chosen.shape[1]
    values = np.empty(width, scores.dtype)
    places = np.empty(width, np.int32)
    for row in range(len(scores)):
        limit = limits[row]
        count = min(budgets[row], limit)
        written = 0
        if count == limit:
            for place in range(limit):
                chosen[row, place] = place
            written = limit
        elif count > 0:
            for place in range(count):
                values[place] = _rank(scores[row, place])
                places[place] = place
            for root in range(count // 2 - 1, -1, -1):
                _sift_down(values, places, root, count)
            for begin in range(count, limit, _RUN):
                end = min(begin + _RUN, limit)
                if not _any_from(scores, row, begin, end, values[0], False):
                    continue
                for place in range(begin, end):
                    # NaN is larger than nothing; an equal score later in the row ranks below all that are in.
                    if scores[row, place] > values[0]:
                        values[0] = scores[row, place]
                        places[0] = place
                        _sift_down(values, places, 0, count)
            worst = values[0]
            last = places[0]
            for begin in range(0, limit, _RUN):
                end = min(begin + _RUN, limit)
                if worst > -np.inf and not _any_from(scores, row, begin, end, worst, True):
                    continue
                for place in range(begin, end):
                    value = _rank(scores[row, place])
                    if value > worst or (value == worst and place <= last):
                        chosen[row, written] = place
                        written += 1
        for rest in range(written, width):
            chosen[row, rest] = -1


@inlined
def _any_from(scores, row, begin, end, bound, equal):
    """Whether a score passes `bound`. Counting, unlike leaving at the first, is done on whole vectors."""
    found = 0
    if equal:
        for place in range(begin, end):
            found += scores[row, place] >= bound
    else:
        for place in range(begin, end):
            found += scores[row, place] > bound
    return found > 0


@inlined
def _rank(score):
    return score if score == score else -np.inf


@inlined
def _sift_down(values, places, root, size):
    """Restore the heap below `root`: a parent is worse than its children, by score, then by place."""
    value, place = values[root], places[root]
    while True:
        child = 2 * root + 1
        if child >= size:
            break
        other = child + 1
        if other < size and _worse(values[other], places[other], values[child], places[child]):
            child = other
        if not _worse(values[child], places[child], value, place):
            break
        values[root] = values[child]
        places[root] = places[child]
        root = child
    values[root] = value
    places[root] = place


@inlined
def _worse(value, place, other, other_place):
    return value < other or (value == other and place > other_place)
