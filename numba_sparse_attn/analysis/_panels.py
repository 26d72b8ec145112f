"""Weights themselves, a panel of queries at a time, over the keys that the panel sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ._inputs import AnyPattern, Call, Floats, members_of
from ._runs import Runs, runs_of

__all__ = ["Panel", "panel_weights", "panels", "weights_by_panel"]

#: Queries of a panel: enough for products at full speed, few enough to share most of their keys.
_QUERIES = 128
#: Weights of a panel: 32 MiB, whatever the number of keys.
_WEIGHTS = 1 << 22


@dataclass(frozen=True, eq=False)
class Panel:
    """The pairs of some neighboring queries.

    Attributes
    ----------
    rows : slice
    columns : int64 [columns]
        Keys that any of the queries sees, ascending.
    seen : bool [rows, columns]
    """

    rows: slice
    columns: npt.NDArray[np.int64]
    seen: npt.NDArray[np.bool_]


def panels(runs: Runs) -> Iterator[Panel]:
    """All queries of a pattern, some at a time; never a square array.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> panel, = panels(runs_of(patterns.sliding_window(3, 0, causal=True)))
    >>> panel.columns.tolist(), panel.seen.sum().item()
    ([0, 1, 2], 3)
    """
    n_q, n_k = runs.shape
    step = max(1, min(_QUERIES, _WEIGHTS // max(n_k, 1)))
    for begin in range(0, n_q, step):
        end = min(begin + step, n_q)
        mine = slice(runs.indptr[begin], runs.indptr[end])
        starts, stops = runs.starts[mine], runs.stops[mine]
        row = np.repeat(np.arange(end - begin), np.diff(runs.indptr[begin : end + 1]))
        # +1 where a run starts, -1 where it stops: the running sum counts the runs that a key is inside of.
        edges = np.bincount(starts, minlength=n_k + 1) - np.bincount(stops, minlength=n_k + 1)
        columns = np.flatnonzero(np.cumsum(edges))
        seen = np.zeros((end - begin, len(columns) + 1), np.int8)
        # In terms of the panel's keys two runs of a query may touch, so that a stop falls on a start.
        np.add.at(seen, (row, np.searchsorted(columns, starts)), 1)
        np.add.at(seen, (row, np.searchsorted(columns, stops)), -1)
        np.cumsum(seen, axis=1, out=seen)
        yield Panel(slice(begin, end), columns, seen[:, :-1].astype(np.bool_))


def panel_weights(panel: Panel, q: Floats, k: Floats, scale: float) -> Floats:
    """Softmax of a panel's scores, ``[rows, columns]``; a query without keys has zeros."""
    # What an unseen key holds, be it NaN, is dropped right after the product.
    with np.errstate(invalid="ignore", over="ignore"):
        scores = scale * (q[panel.rows] @ k[panel.columns].T)
    scores[~panel.seen] = -np.inf
    some = panel.seen.any(axis=1, keepdims=True)
    peak = np.where(some, scores.max(axis=1, keepdims=True, initial=-np.inf), 0.0)
    weights: Floats = np.exp(scores - peak)
    total = weights.sum(axis=1, keepdims=True)
    return np.divide(weights, total, out=weights, where=some)


def weights_by_panel(call: Call, pattern: AnyPattern) -> Iterator[tuple[int, int, Panel, Floats]]:
    """(batch element, head, panel, weights) for every panel of every head."""
    which = call.which(pattern)
    q, k = call.heads_first(call.q), call.heads_first(call.k)
    group = call.sizes.heads // call.sizes.kv_heads
    for number, member in enumerate(members_of(pattern)):
        users = np.argwhere(which == number)
        if not len(users):
            continue
        for panel in panels(runs_of(member)):
            for batch, head in users:
                weights = panel_weights(panel, q[batch, head], k[batch, head // group], call.scale)
                yield int(batch), int(head), panel, weights
