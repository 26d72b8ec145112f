"""Queries and keys that point the same way, by hashing."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import PatternError
from ..orders.made import buckets as by_bucket
from ..orders.order import Recipe
from ..patterns._arguments import check_int, title
from ..patterns.heads import HeadPatterns
from ..patterns.pattern import Pattern
from ..patterns.random_keys import MAXIMAL_SEED
from ._call import Call, Floats, Integers
from ._lists import pattern_of_parts, sorted_by_route
from ._panels import for_each_panel, largest
from ._seeded import normals
from .catalogue import Array, Case, Mask, entry

__all__ = ["lsh"]


def _definition(
    q: Array, k: Array, chunk: Any, buckets: int, rounds: int = 1, seed: int = 0, causal: bool = False
) -> Mask:
    heads, n_q, width = q.shape
    n_k = k.shape[1]
    mask = np.zeros((heads, n_q, n_k), np.bool_)
    rotations = normals(seed, (heads, rounds, width, buckets // 2))
    for head, number in np.ndindex(heads, rounds):
        size = chunk[head] if isinstance(chunk, list) else chunk
        turned = [rows @ rotations[head, number] for rows in (q[head], k[head * len(k) // heads])]
        of_query, of_key = (np.concatenate([rows, -rows], axis=1).argmax(axis=1) for rows in turned)
        for i in range(n_q):
            place = i + n_k - n_q
            bucket = [j for j in range(n_k) if of_key[j] == of_query[i]]
            passed = sum(j <= place for j in bucket)
            mine = max(passed - 1, 0) // size
            for rank, j in enumerate(bucket):
                mask[head, i, j] |= mine - 1 <= rank // size <= mine and (not causal or j <= place)
    return mask


@entry(
    examples=lambda: [
        Case(48, 48, {"chunk": 4, "buckets": 6, "rounds": 2, "causal": True}),
        Case(33, 70, {"chunk": [1, 2, 5, 99], "buckets": 4, "rounds": 3, "seed": 5}, heads=4, kv_heads=2),
        Case(40, 25, {"chunk": 3, "buckets": 2, "seed": 2**64 - 1, "causal": True}),
        Case(5, 0, {"chunk": 3, "buckets": 4}),
    ],
    dense=_definition,
    scaled=lambda length: Case(
        length,
        length,
        {"chunk": 32, "buckets": max(2, length // 64 * 2), "rounds": 2, "causal": True},
        head_dim=64,
    ),
)
def lsh(
    q: Any, k: Any, chunk: Any, buckets: int, *, rounds: int = 1, seed: int = 0, causal: bool = False
) -> Pattern | HeadPatterns:
    """Every query sees keys of its bucket near its own place, in several rounds of hashing.

    ::

        union over rounds r of {(i, j) : h_r(q_i) = h_r(k_j)  and  c_r(i) - 1 <= c_r(j) <= c_r(i)}
        h_r(x) = the largest of [x R_r, -x R_r], R_r a random matrix (d, buckets / 2)
        c_r(j) = chunk of j: the keys of a bucket, in order, cut every `chunk` keys
        c_r(i) = chunk of the last key of the bucket with j <= i + n_k - n_q, or the first chunk

    Parameters
    ----------
    q : array (..., heads, n_q, d) or (n_q, d)
    k : array (..., kv_heads, n_k, d) or (n_k, d)
        As :func:`numba_sparse_attn.sparse_attention` takes them, in host memory.
    chunk : int or sequence of int
        Keys in a chunk, at least 1; one number, or one for every query head.
    buckets : int
        An even number, at least 2.
    rounds : int
        At least 1. What two rounds agree on is seen once.
    seed : int
        From 0 to 2**64 - 1.
    causal : bool
        Only keys ``j <= i + n_k - n_q`` may be seen.

    Returns
    -------
    Pattern or HeadPatterns
        A pattern for ``(n, d)`` arrays, else one for every head of every batch element. Held as a sorted list
        of keys and two numbers a query and round; rows are made when they are needed.

    Notes
    -----
    Pairs: at most ``2 * n_q * rounds * chunk``. A row may be empty, if its bucket has no keys.

    Cost: O((n_q + n_k) * rounds * buckets * d) time to select.

    Use: as in Reformer (2020), where queries are keys and fall into one bucket with themselves; the more
    rounds, the less is missed. There chunks are cut from one list of all buckets, here bucket by bucket.

    Avoid: where queries and keys point to different places altogether, as untrained ones do.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.array([[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0], [-3.0, 0.0]])
    >>> nsa.dynamic.lsh(q, k, 2, 2).toarray().astype(int)
    array([[1, 0, 1, 0],
           [0, 1, 0, 1],
           [1, 0, 1, 0],
           [0, 1, 0, 1]])
    """
    call = Call.of(q, k, causal)
    sizes = call.per_head("chunk", chunk, low=1)
    buckets = check_int("buckets", buckets, low=2)
    if buckets % 2:  # one would be without its opposite
        raise PatternError(f"buckets={buckets}", "an even number, at least 2", f"choose {buckets + 1}")
    rounds = check_int("rounds", rounds, low=1)
    seed = check_int("seed", seed, high=MAXIMAL_SEED)
    name = title(lsh, chunk=chunk, buckets=buckets, rounds=rounds, seed=seed, causal=causal)
    rotations = normals(seed, (call.heads, rounds, int(call.q.shape[-1]), buckets // 2)).astype(call.q.dtype)
    # Where the query stands among the keys, whether or not it may look further.
    places = np.arange(call.n_q, dtype=np.int64) + call.offset

    def select(batch: int, head: int) -> Pattern:
        lists, parts = [], np.empty((call.n_q, rounds, 2), np.int64)
        for number in range(rounds):
            rotation = np.ascontiguousarray(rotations[head, number].T)
            of_keys = _hashes(call.keys(batch, head), rotation)
            members, begins = sorted_by_route(of_keys, buckets)
            bucket = _hashes(call.queries(batch, head), rotation)
            passed = _passed(members, begins, bucket, places)
            mine = np.maximum(passed - 1, 0) // sizes[head]
            low = begins[bucket] + np.maximum(mine - 1, 0) * sizes[head]
            high = np.minimum(begins[bucket] + (mine + 1) * sizes[head], begins[bucket + 1])
            parts[:, number] = np.stack([low, high], axis=1) + number * call.n_k
            lists.append(members)
        # A second round has other buckets: in the order of the first it meets nearly every tile.
        orders = [Recipe(by_bucket, bucket.astype(np.int32), of_keys.astype(np.int32))] if rounds == 1 else []
        return pattern_of_parts(call, np.concatenate(lists), parts, name, orders=orders)

    return call.stack(select)


def _hashes(rows: Floats, rotation: Floats) -> Integers:
    """The bucket of every row: the direction, or the opposite of one, that it points to most."""
    found = np.empty(len(rows), np.int64)
    half = len(rotation)

    def work(panel: slice, turned: Floats) -> None:
        ones = np.ones(len(turned), np.int64)
        both = np.concatenate([turned, -turned], axis=1)
        found[panel] = largest(both, 2 * half * ones, ones)[:, 0]

    for_each_panel(rows, rotation, np.full(len(rows), half, np.int64), work)
    return found


def _passed(members: Integers, begins: Integers, bucket: Integers, places: Integers) -> Integers:
    """Keys of every query's bucket that do not lie after the query's place."""
    size = len(members) + 1
    # Members ascend within a bucket: with the bucket in front they ascend throughout.
    codes = np.repeat(np.arange(len(begins) - 1), np.diff(begins)) * size + members
    ends = np.searchsorted(codes, bucket * size + np.clip(places, -1, len(members) - 1), side="right")
    return ends - begins[bucket]
