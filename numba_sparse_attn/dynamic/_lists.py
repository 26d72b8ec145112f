"""Patterns whose queries share lists of keys: routes, clusters, buckets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from ..formats.csr import canonical
from ..jit import kernel
from ..orders.made import buckets
from ..orders.order import Recipe
from ..patterns.pattern import Pattern
from ._call import Call, Floats, Integers
from ._panels import best_of_panels, best_place

__all__ = ["by_routes", "pattern_of_parts", "sorted_by_route"]


def pattern_of_parts(
    call: Call, members: Integers, parts: Integers, name: str, *, orders: Sequence[Recipe] = ()
) -> Pattern:
    """Every query sees some parts of a list of keys.

    Parameters
    ----------
    members : int64 [entries]
        Keys; ascending within every part.
    parts : int64 [n_q, parts, 2]
        Begin and end of the parts of every query. They may overlap, and hold the same keys.

    Returns
    -------
    Pattern
        Holds `members` and two numbers a part; rows are made when they are needed.
    """
    counts = np.empty(parts.shape[:2], np.int64)
    _count_visible(members, parts, call.visible, counts)
    rows = partial(_rows, call.n_k, members, np.ascontiguousarray(parts[:, :, 0]), counts)
    return Pattern.from_rows((call.n_q, call.n_k), rows, name=name, orders=orders)


def by_routes(
    call: Call,
    queries: tuple[Floats, Floats],
    keys: tuple[Floats, Floats],
    budget: int | None,
    name: str,
) -> Pattern:
    """Every query sees the keys of the route that it has the largest product with.

    Parameters
    ----------
    queries, keys : ([n, width], [routes, width])
        Rows, and what they are multiplied with for every route.
    budget : int or None
        Keys of a route: those with the largest product, so that a key may have several routes, or none.
        Without a budget every key has one: that of its largest product.
    """
    rows, routes = keys
    if budget is None:
        route_of_key = best_place(rows, routes)
        members, begins = sorted_by_route(route_of_key, len(routes))
    else:
        every = np.full(len(routes), len(rows), np.int64)
        table = best_of_panels(routes, rows, every, np.minimum(every, budget))
        members = table[table >= 0].astype(np.int64)
        counts = (table >= 0).sum(axis=1)
        begins = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        # The first route that has it; keys that no query sees come last.
        route_of_key = np.full(len(rows), len(routes), np.int64)
        route_of_key[members[::-1]] = np.repeat(np.arange(len(routes)), counts)[::-1]
    route = best_place(*queries)
    parts = np.stack([begins[route], begins[route + 1]], axis=1)[:, None]
    orders = [Recipe(buckets, route.astype(np.int32), route_of_key.astype(np.int32))]
    return pattern_of_parts(call, members, parts, name, orders=orders)


def sorted_by_route(route: Integers, routes: int) -> tuple[Integers, Integers]:
    """Lists of what has each route, ascending and one behind the other, and where each begins."""
    counts = np.bincount(route, minlength=routes)
    begins = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return np.argsort(route, kind="stable").astype(np.int64), begins


def _rows(
    n_k: int, members: Integers, begins: Integers, counts: Integers, begin: int, end: int
) -> tuple[Integers, npt.NDArray[np.int32]]:
    """Rows begin .. end - 1; the parts of a row become one ascending list without repetitions."""
    mine = counts[begin:end]
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(mine.sum(axis=1))])
    keys = np.empty(indptr[-1], np.int32)
    _copy_parts(members, begins[begin:end], mine, keys)
    if counts.shape[1] > 1:
        rows = canonical((end - begin, n_k), indptr, keys)
        return rows.indptr, rows.indices
    return indptr, keys


@kernel
def _count_visible(members, parts, limits, counts):
    """How many entries of every part come before the query's limit: a search in an ascending list."""
    for row in range(parts.shape[0]):
        for part in range(parts.shape[1]):
            low, high = parts[row, part, 0], parts[row, part, 1]
            while low < high:
                middle = (low + high) // 2
                if members[middle] < limits[row]:
                    low = middle + 1
                else:
                    high = middle
            counts[row, part] = max(0, low - parts[row, part, 0])


@kernel
def _copy_parts(members, begins, counts, keys):
    place = 0
    for row in range(begins.shape[0]):
        for part in range(begins.shape[1]):
            for entry in range(begins[row, part], begins[row, part] + counts[row, part]):
                keys[place] = members[entry]
                place += 1
