"""Queries and keys that point to the same centroid."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..patterns._arguments import check_int
from ..patterns.heads import HeadPatterns
from ..patterns.pattern import Pattern
from ..patterns.random_keys import MAXIMAL_SEED
from . import _dense
from ._call import Call, named
from ._lists import by_routes
from ._means import cluster_means, starting_points, unit
from ._panels import best_place
from ._seeded import normals
from .catalogue import Array, Case, Mask, by_head, entry

__all__ = ["kmeans_centroids", "kmeans_routing", "kmeans_update"]


def _definition(q: Array, k: Array, centroids: Array, budget: int | None, causal: bool = False) -> Mask:
    q, k, centers = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (q, k, centroids))
    of_query = (q @ centers.T).argmax(axis=1)
    if budget is None:
        of_key = (k @ centers.T).argmax(axis=1) if len(k) else np.zeros(0)
        shared = of_query[:, None] == of_key
    else:
        everything = np.ones((len(centers), len(k)), np.bool_)
        shared = _dense.best(centers @ k.T, everything, budget)[of_query]
    return shared & _dense.seen(len(q), len(k), causal)


@entry(
    examples=lambda: [
        Case(48, 48, {"centroids": normals(9, (2, 5, 16)), "budget": 10, "causal": True}),
        Case(33, 70, {"centroids": normals(8, (4, 3, 16)), "budget": [9, 0, 100, 20]}, heads=4, kv_heads=2),
        Case(40, 25, {"centroids": normals(7, (2, 4, 16)), "budget": None, "causal": True}),
        Case(5, 0, {"centroids": normals(7, (2, 4, 16)), "budget": 3}),
    ],
    dense=by_head(_definition, "centroids", "budget"),
    scaled=lambda length: Case(
        length, length, {"centroids": normals(9, (2, max(1, length // 128), 64)), "budget": 128}, head_dim=64
    ),
)
def kmeans_routing(
    q: Any, k: Any, centroids: Any, budget: Any, *, causal: bool = False
) -> Pattern | HeadPatterns:
    """Every query sees the keys nearest to the centroid that it is nearest to itself.

    ::

        {(i, j) : j among the `budget` keys nearest to c(i)},   c(i) = the centroid nearest to q_i

    Near means pointing the same way: queries, keys and centroids are scaled to length 1.

    Parameters
    ----------
    q : array (..., heads, n_q, d) or (n_q, d)
    k : array (..., kv_heads, n_k, d) or (n_k, d)
        As :func:`numba_sparse_attn.sparse_attention` takes them, in host memory.
    centroids : array (heads, clusters, d), or (clusters, d) for all heads
        :func:`kmeans_centroids` makes the first ones, :func:`kmeans_update` moves them along.
    budget : int, sequence of int, or None
        Keys of a cluster; one number, or one for every query head. None: every key belongs to the centroid
        nearest to it, however many that makes.
    causal : bool
        Only keys ``j <= i + n_k - n_q`` may be seen.

    Returns
    -------
    Pattern or HeadPatterns
        A pattern for ``(n, d)`` arrays, else one for every head of every batch element. Held as a list of
        keys a cluster and a cluster a query; rows are made when they are needed.

    Notes
    -----
    Pairs: at most ``n_q * budget``. Causal rows may be empty: nearness does not ask what comes first.

    Cost: O((n_q + n_k) * clusters * d) time to select.

    Use: as the routing heads of a routing transformer (2021), with about sqrt(n) clusters, beside windows.
    There each cluster takes as many queries as keys, the nearest, to get products of one size; here every
    query has its cluster.

    Avoid: with centroids that never moved: clusters are then chance.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.1, 3.0]])
    >>> nsa.dynamic.kmeans_routing(q, k, np.eye(2), 2).toarray().astype(int)
    array([[1, 0, 1, 0],
           [0, 1, 0, 1],
           [1, 0, 1, 0],
           [0, 1, 0, 1]])
    """
    call = Call.of(q, k, causal)
    centers = unit(_centroids(call, centroids))
    budgets = [None] * call.heads if budget is None else call.per_head("budget", budget)
    name = named(kmeans_routing, centroids=centroids, budget=budget, causal=causal)

    def select(batch: int, head: int) -> Pattern:
        queries, keys = unit(call.queries(batch, head)), unit(call.keys(batch, head))
        mine = centers[head]
        return by_routes(call, (queries, mine), (keys, mine), budgets[head], name)

    return call.stack(select)


def kmeans_centroids(q: Any, k: Any, clusters: int, *, seed: int = 0) -> npt.NDArray[Any]:
    """Centroids to begin with: for every query head, some of the keys that it reads, at length 1.

    Parameters
    ----------
    q, k : arrays
        As in :func:`kmeans_routing`; with batch axes, of all batch elements.
    clusters : int
        At least 1, and no more than there are keys.
    seed : int
        From 0 to 2**64 - 1.

    Returns
    -------
    array (heads, clusters, d)
        float32, or float64 for float64 inputs.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.random.default_rng(0).standard_normal((2, 32, 8))
    >>> nsa.dynamic.kmeans_centroids(q, k, 4).shape
    (2, 4, 8)
    """
    call = Call.of(q, k, False)
    clusters = check_int("clusters", clusters, low=1)
    seed = check_int("seed", seed, high=MAXIMAL_SEED)
    keys = [call.k[:, head // call.group].reshape(-1, call.q.shape[-1]) for head in range(call.heads)]
    return unit(np.stack([starting_points(rows, clusters, seed, head) for head, rows in enumerate(keys)]))


def kmeans_update(q: Any, k: Any, centroids: Any, *, decay: float = 0.999) -> npt.NDArray[Any]:
    """Centroids moved towards the queries and keys that are nearest to them: a running mean.

    ::

        c' = unit(decay * c + (1 - decay) / 2 * (mean of its queries + mean of its keys))

    all at length 1. Where a centroid has no queries, or no keys, it stands for their mean itself.

    Parameters
    ----------
    q, k : arrays
        As in :func:`kmeans_routing`; with batch axes, of all batch elements.
    centroids : array (heads, clusters, d), or (clusters, d) for all heads
    decay : float
        From 0 to 1; how much is kept.

    Returns
    -------
    array (heads, clusters, d)
        float32, or float64 for float64 inputs.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.array([[[1.0, 0.0], [0.0, 2.0]]])
    >>> nsa.dynamic.kmeans_update(q, k, np.array([[0.6, 0.8]]), decay=0.0).round(3).tolist()
    [[[0.707, 0.707]]]
    """
    call = Call.of(q, k, False)
    if not isinstance(decay, int | float | np.floating) or not 0.0 <= decay <= 1.0:
        raise ArgumentError(f"decay={decay!r}", "a number from 0 to 1", "0.999 keeps nearly all")
    centers = unit(_centroids(call, centroids))
    moved = np.empty_like(centers)
    for head, old in enumerate(centers):
        means = np.zeros_like(old)
        for rows in (call.q[:, head], call.k[:, head // call.group]):
            directions = unit(rows.reshape(-1, old.shape[-1]))
            means += cluster_means(directions, best_place(directions, old), old)
        moved[head] = decay * old + (1.0 - decay) / 2.0 * means
    return unit(moved)


def _centroids(call: Call, centroids: Any) -> npt.NDArray[Any]:
    made = call.head_arrays("centroids", centroids, (None, int(call.q.shape[-1])))
    if not made.shape[1]:
        raise ArgumentError("no centroids", "at least one", "make some with kmeans_centroids")
    return made
