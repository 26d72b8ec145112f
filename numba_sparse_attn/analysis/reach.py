"""Who can depend on whom through several layers: receptive fields, and when everything is connected.

Exact on the graph of the pattern, in which a query has an edge to every key that it sees. Heads add up:
a layer connects what any of its heads connects.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, ShapeError
from ..jit import for_each
from ..patterns.causal import causal
from ..patterns.convert import as_pattern
from ..patterns.full import full
from ..patterns.pattern import Pattern
from ._inputs import AnyPattern, check_layers, check_whole, members_of
from ._runs import Runs, concatenated, runs_of
from ._spread import BLOCK_WORDS, connect_block, field_block

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Connection", "ReceptiveField", "layers_to_connect", "receptive_field"]

Integers = npt.NDArray[np.int64]
#: indptr, starts, stops.
_RunArrays = tuple[npt.NDArray[np.int64], ...]


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """What every query depends on, layer by layer; made by :func:`receptive_field`.

    Attributes
    ----------
    name : str
        Of the layers.
    by_query : int64 [depth + 1, n]
        Number of keys in the receptive field of each query after 0, 1, ... layers.
    by_key : int64 [depth + 1, n]
        Number of queries whose receptive field has each key.
    queries : int64 [m]
        Queries that were looked at key by key.
    first_layer : int64 [m, n]
        After how many layers each key is first in their field; -1 if in none.
    """

    name: str
    by_query: Integers
    by_key: Integers
    queries: Integers
    first_layer: Integers

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.by_query) - 1

    @property
    def share(self) -> npt.NDArray[np.float64]:
        """Share of all (query, key) pairs that are connected after 0, 1, ... layers, ``[depth + 1]``."""
        n = self.by_query.shape[1]
        return self.by_query.sum(axis=1) / max(n * n, 1)

    def reached(self, query: int | None = None) -> tuple[int, npt.NDArray[np.bool_]]:
        """A query and the keys that it has reached after 0, 1, ... layers, ``[depth + 1, n]``.

        One of `queries`; that which reaches most if not given.
        """
        if not len(self.queries) or (query is not None and query not in self.queries):
            raise ArgumentError(
                f"query={query!r}", f"one of {self.queries.tolist()}", "name it when you compute the field"
            )
        most = self.queries[np.argmax((self.first_layer >= 0).sum(axis=1))]
        chosen = int(most if query is None else query)
        first = self.first_layer[np.argmax(self.queries == chosen)]
        return chosen, (first >= 0) & (first <= np.arange(self.depth + 1)[:, None])

    def plot(self, ax: Axes | None = None, *, query: int | None = None) -> Axes:
        """A picture by :func:`numba_sparse_attn.plot.plot_receptive_field`."""
        from ..plot import plot_receptive_field

        return plot_receptive_field(self, ax, query=query)


@dataclass(frozen=True, eq=False)
class Connection:
    """When everything is connected; made by :func:`layers_to_connect`.

    Attributes
    ----------
    layers : int or None
        Layers until every query depends on all keys of the goal; None if it never does.
    by_query : int64 [n]
        Layers until each query does; -1 for never.
    by_key : int64 [n]
        Layers until all queries that should depend on a key do; -1 for never.
    """

    layers: int | None
    by_query: Integers
    by_key: Integers


def receptive_field(
    *layers: Any, depth: int, residual: bool = True, queries: Sequence[int] | None = None
) -> ReceptiveField:
    """The tokens that every token depends on, after each of `depth` layers.

    Parameters
    ----------
    *layers
        The pattern of every layer, or several patterns that take turns, the first layer's first. What is
        said for heads counts as their union.
    depth : int
    residual : bool
        Whether layers have a skip connection, so that every token also depends on itself. Without, a
        field holds what is exactly as many steps away as there are layers, and may shrink.
    queries : sequence of int, optional
        Queries to look at key by key; the first, the middle and the last if not given.

    Returns
    -------
    ReceptiveField

    Notes
    -----
    Boolean products of bit sets, on all cores. For patterns whose queries see few intervals of keys, time
    hardly depends on how long those are. Memory follows n, not its square.

    Examples
    --------
    >>> import numba_sparse_attn as nsa
    >>> field = nsa.analysis.receptive_field(nsa.patterns.sliding_window(100, 3), depth=4)
    >>> field.by_query[:, 50].tolist()  # three more on each side with every layer
    [1, 7, 13, 19, 25]
    """
    graphs, name = _graphs(layers)
    n = graphs[0].shape[0]
    depth = check_whole("depth", depth, low=0)
    chosen = sorted({0, n // 2, n - 1} if n else ()) if queries is None else list(queries)
    if any(check_whole("query", query, low=0) >= n for query in chosen):
        raise ArgumentError(f"queries={chosen!r}", f"queries below {n}", "correct queries")
    looked_at = np.array(chosen, np.int64)
    layer_runs, bound = concatenated([runs_of(graph) for graph in graphs]), _bound(graphs)
    by_key = np.zeros((depth + 1, n), np.int64)
    first_layer = np.full((len(looked_at), n), -1, np.int64)
    scratch = _Scratch(n, 2, (depth + 1, n))

    def run(base: int, worker: int) -> None:
        memory, by_query = scratch.of(worker)
        results = by_query, by_key, first_layer
        arguments = [*layer_runs, *bound, base, bool(residual), looked_at, *memory, *results]
        field_block(*arguments)

    for_each(run, range(0, n, 64 * BLOCK_WORDS))
    by_query = functools.reduce(np.add, scratch.results, np.zeros((depth + 1, n), np.int64))
    return ReceptiveField(name, by_query.cumsum(axis=0), by_key.cumsum(axis=0), looked_at, first_layer)


def layers_to_connect(*layers: Any, goal: Any = None) -> Connection:
    """How many layers it takes until every token depends on every other, or on every earlier one.

    Every layer has a skip connection. The search ends as soon as all is connected or nothing changes any
    more.

    Parameters
    ----------
    *layers
        As in :func:`receptive_field`.
    goal : optional
        The pairs to be connected. If not given, all, or all that do not look ahead if no layer does.

    Returns
    -------
    Connection

    Examples
    --------
    >>> import numba_sparse_attn as nsa
    >>> window = nsa.patterns.sliding_window(1000, 10)
    >>> nsa.analysis.layers_to_connect(window).layers
    100
    >>> nsa.analysis.layers_to_connect(window | nsa.patterns.global_tokens(1000, [0])).layers
    2
    >>> print(nsa.analysis.layers_to_connect(nsa.patterns.block_local(1000, 10)).layers)
    None
    """
    graphs, _ = _graphs(layers)
    n = graphs[0].shape[0]
    layer_runs, bound = concatenated([runs_of(graph) for graph in graphs]), _bound(graphs)
    wanted = bound
    if goal is not None:
        target = _union(as_pattern(goal))
        if target.shape != (n, n):
            raise ShapeError(
                f"a goal of shape {target.shape} for layers of shape {(n, n)}", "one shape", "correct goal"
            )
        wanted = _arrays(runs_of(target))
    # A way to a token visits every other one at most once, and waits for every step's layer to come round.
    most = max(n, 1) * len(graphs)
    by_key = np.zeros(n, np.int64)
    scratch = _Scratch(n, 3, (n,))

    def run(base: int, worker: int) -> None:
        memory, by_query = scratch.of(worker)
        arguments = [*layer_runs, *bound, *wanted, base, most, *memory, by_query, by_key]
        connect_block(*arguments)

    for_each(run, range(0, n, 64 * BLOCK_WORDS))
    latest = functools.reduce(np.maximum, scratch.results, np.zeros(n, np.int64))
    needed = int(latest.max(initial=0))
    return Connection(
        None if needed > most else needed,
        np.where(latest > most, -1, latest),
        np.where(by_key > most, -1, by_key),
    )


class _Scratch:
    """Memory of the threads, allocated by each when it first works, with what each finds out by query."""

    def __init__(self, n: int, sets: int, shape: tuple[int, ...]) -> None:
        self._n, self._sets, self._shape = n, sets, shape
        self._memory: dict[int, tuple[npt.NDArray[Any], ...]] = {}
        self._results: dict[int, npt.NDArray[np.int32]] = {}

    def of(self, worker: int) -> tuple[tuple[npt.NDArray[Any], ...], npt.NDArray[np.int32]]:
        """What the kernels call tree, fresh, limit (and goal), changed_at, grown, moved; and by_query."""
        if worker not in self._memory:
            n = self._n
            rows = [np.empty((length, BLOCK_WORDS), np.uint64) for length in (2 * n, *[n] * self._sets)]
            counters = np.empty(n, np.int64), np.zeros(n + 1, np.int64), np.empty(n, np.int64)
            self._memory[worker] = (*rows, *counters)
            self._results[worker] = np.zeros(self._shape, np.int32)
        return self._memory[worker], self._results[worker]

    @property
    def results(self) -> list[npt.NDArray[np.int32]]:
        """By query, of every thread that worked; in no order that could matter to a sum or a maximum."""
        return list(self._results.values())


def _union(pattern: AnyPattern) -> Pattern:
    return functools.reduce(operator.or_, members_of(pattern))


def _graphs(layers: tuple[Any, ...]) -> tuple[list[Pattern], str]:
    """One square pattern a layer, and a name for all."""
    graphs = [_union(layer) for layer in check_layers(layers)]
    return graphs, ", ".join(graph.name for graph in graphs)


def _arrays(runs: Runs) -> _RunArrays:
    return runs.indptr, runs.starts, runs.stops


def _bound(graphs: list[Pattern]) -> _RunArrays:
    """Runs of all that layers could ever connect: everything, or the past if no layer looks ahead."""
    n = graphs[0].shape[0]
    everything = causal(n) if not any(_looks_ahead(runs_of(graph)) for graph in graphs) else full(n)
    return _arrays(runs_of(everything))


def _looks_ahead(runs: Runs) -> bool:
    some = np.flatnonzero(np.diff(runs.indptr))
    return bool(np.any(runs.stops[runs.indptr[some + 1] - 1] > some + 1))
