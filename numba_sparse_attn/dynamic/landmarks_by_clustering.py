"""A window and the keys in the middle of clusters."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..patterns._arguments import check_int, title
from ..patterns._random import chosen
from ..patterns.heads import HeadPatterns
from ..patterns.pattern import Pattern
from ..patterns.random_keys import MAXIMAL_SEED
from ._call import Call, Floats, Integers
from ._landmarks import dense_landmarks, landmark_pattern
from ._means import cluster_means, starting_points, unit
from ._panels import best_place, for_each_panel, largest
from .catalogue import Array, Case, Mask, entry

__all__ = ["landmarks_by_clustering"]

#: Digits of a cosine that rounding in float32 leaves alone.
_SURE_DIGITS = 5


def _definition(
    q: Array, k: Array, budget: Any, window: int, rounds: int = 8, seed: int = 0, causal: bool = False
) -> Mask:
    masks = []
    for head, queries in enumerate(q):
        shared = head * len(k) // len(q)
        keys = k[shared] / np.linalg.norm(k[shared], axis=1, keepdims=True)
        count = min(budget[head] if isinstance(budget, list) else budget, len(keys))
        centers = keys[sorted(chosen(seed, shared, count, len(keys)))]
        for _ in range(rounds if count else 0):
            mine = (keys @ centers.T).argmax(axis=1)
            means = [
                keys[mine == at].mean(axis=0) if (mine == at).any() else centers[at] for at in range(count)
            ]
            centers = np.array([mean / np.linalg.norm(mean) for mean in means])
        landmarks = (centers @ keys.T).round(_SURE_DIGITS).argmax(axis=1) if count else np.zeros(0, np.int64)
        masks.append(dense_landmarks(len(queries), len(keys), landmarks, window, causal))
    return np.stack(masks)


@entry(
    examples=lambda: [
        Case(48, 48, {"budget": 5, "window": 3, "causal": True}),
        Case(33, 70, {"budget": [0, 3, 9, 80], "window": 2, "rounds": 3}, heads=4, kv_heads=2),
        Case(40, 25, {"budget": 2, "window": 0, "rounds": 0, "seed": 6, "causal": True}),
        Case(5, 0, {"budget": 1, "window": 1}),
    ],
    dense=_definition,
    scaled=lambda length: Case(length, length, {"budget": 64, "window": 64, "causal": True}, head_dim=64),
)
def landmarks_by_clustering(
    q: Any, k: Any, budget: Any, window: int, *, rounds: int = 8, seed: int = 0, causal: bool = False
) -> Pattern | HeadPatterns:
    """Every query sees a window, and one key of each cluster of keys: that nearest to its middle.

    ::

        {(i, j) : |i + n_k - n_q - j| <= window  or  j in L}
        L = for each of `budget` clusters of the keys, the key nearest to the cluster's mean

    The clusters are those of k-means over directions: keys are scaled to length 1, begun with `budget` keys
    chosen at random, and moved `rounds` times. Cosines that agree to five digits are equal.

    Parameters
    ----------
    q : array (..., heads, n_q, d) or (n_q, d)
    k : array (..., kv_heads, n_k, d) or (n_k, d)
        As :func:`numba_sparse_attn.sparse_attention` takes them, in host memory.
    budget : int or sequence of int
        Clusters, and landmarks at most; one number, or one for every query head. All keys where that is their
        number or more.
    window : int
        Keys seen on each side besides the query's own place.
    rounds : int
        How often the means move.
    seed : int
        From 0 to 2**64 - 1.
    causal : bool
        Only keys ``j <= i + n_k - n_q`` may be seen.

    Returns
    -------
    Pattern or HeadPatterns
        A pattern for ``(n, d)`` arrays, else one for every head of every batch element; one piece for the
        window, one a run of neighboring landmarks.

    Notes
    -----
    Pairs: at most ``n_q * (2 * window + 1 + budget)``.

    Cost: O(rounds * n_k * budget * d) time to select; queries are not looked at.

    Use: where landmarks should stand for everything there is, and not only for what is asked for most.

    Avoid: where keys have no clusters: landmarks then are a random sample.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.array([[1.0, 0.1], [1.0, 0.0], [1.0, -0.1], [0.1, 1.0], [0.0, 1.0], [-0.1, 1.0]])
    >>> nsa.dynamic.landmarks_by_clustering(q, k, 2, 0).toarray()[0].astype(int)  # its own key, and two
    array([1, 1, 0, 0, 1, 0])
    """
    call = Call.of(q, k, causal)
    budgets = call.per_head("budget", budget)
    window, rounds = check_int("window", window), check_int("rounds", rounds)
    seed = check_int("seed", seed, high=MAXIMAL_SEED)
    name = title(
        landmarks_by_clustering, budget=budget, window=window, rounds=rounds, seed=seed, causal=causal
    )

    def select(batch: int, head: int) -> Pattern:
        # By key head: query heads that share keys and have one budget get the same landmarks.
        keys, stream = unit(call.keys(batch, head)), head // call.group
        found = _medoids(keys, min(budgets[head], call.n_k), rounds, seed, stream)
        return landmark_pattern(call, found, window, name)

    return call.stack(select)


def _medoids(keys: Floats, count: int, rounds: int, seed: int, stream: int) -> Integers:
    """The key nearest to each of `count` means."""
    if not count:
        return np.zeros(0, np.int64)
    centers = starting_points(keys, count, seed, stream)
    for _ in range(rounds):
        centers = unit(cluster_means(keys, best_place(keys, centers), centers))
    found = np.empty(count, np.int64)
    every = np.full(count, len(keys), np.int64)

    def work(rows: slice, cosines: Floats) -> None:
        # A cluster of two has two middles: rounding to sure digits makes them equal, and the first wins.
        np.round(cosines, _SURE_DIGITS, out=cosines)
        found[rows] = largest(cosines, every[rows], np.ones(len(cosines), np.int64))[:, 0]

    for_each_panel(centers, keys, every, work)
    return found
