"""The keys that a learned gate lets through."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..jit import kernel
from ..patterns.heads import HeadPatterns
from ..patterns.pattern import Pattern
from . import _dense
from ._call import Call, Integers, named
from ._seeded import normals
from .catalogue import Array, Case, Mask, by_head, entry

__all__ = ["adaptive"]


def _definition(q: Array, k: Array, weight: Array, bias: float, tau: float, causal: bool = False) -> Mask:
    both = np.concatenate([np.repeat(q[:, None], len(k), axis=1), np.repeat(k[None], len(q), axis=0)], axis=2)
    gate = 1.0 / (1.0 + np.exp(-(both @ weight + bias)))
    return _dense.seen(len(q), len(k), causal) & (gate > tau)


@entry(
    examples=lambda: [
        Case(48, 48, {"weight": 0.2 * normals(5, (2, 32)), "bias": -1.0, "tau": 0.5, "causal": True}),
        Case(
            33,
            70,
            {"weight": 0.2 * normals(6, (32,)), "bias": [0.0, -2.0, 1.0, -9.0], "tau": 0.7},
            heads=4,
            kv_heads=2,
        ),
        Case(40, 25, {"weight": 0.2 * normals(7, (32,)), "bias": 0.0, "tau": [0.2, 0.9], "causal": True}),
        Case(5, 0, {"weight": np.zeros(32), "bias": 0.0, "tau": 0.5}),
    ],
    dense=by_head(_definition, "weight", "bias", "tau"),
    scaled=lambda length: Case(
        length,
        length,
        {"weight": 0.1 * normals(5, (2, 128)), "bias": -4.0, "tau": 0.5, "causal": True},
        head_dim=64,
    ),
)
def adaptive(
    q: Any, k: Any, weight: Any, bias: Any, tau: Any, *, causal: bool = False
) -> Pattern | HeadPatterns:
    """Every query sees the keys for which a gate over both is open.

    ::

        {(i, j) : sigma(weight . [q_i; k_j] + bias) > tau}

    Parameters
    ----------
    q : array (..., heads, n_q, d) or (n_q, d)
    k : array (..., kv_heads, n_k, d) or (n_k, d)
        As :func:`numba_sparse_attn.sparse_attention` takes them, in host or GPU memory.
    weight : array (2 * d,) or (heads, 2 * d)
        Of the gate: its first half meets the query, its second half the key.
    bias, tau : float or sequence of float
        One number, or one for every query head; 0 < tau < 1.
    causal : bool
        Only keys ``j <= i + n_k - n_q`` may be seen.

    Returns
    -------
    Pattern or HeadPatterns
        A pattern for ``(n, d)`` arrays, else one for every head of every batch element. Rows are made when
        they are needed.

    Notes
    -----
    Pairs: at most ``n_q * n_k``, as the gate decides. A row may be empty.

    Cost: O((n_q + n_k) * d) time to select, as the gate is a sum of a part of the query and a part of the
    key; O(n_q * n_k) comparisons to list the rows. The pattern is a number a query and a number a key.

    Use: with a gate that was trained beside the model.

    Avoid: for telling which key suits which query: keys come in the same order for all queries, and a query
    only decides how far down it goes. :func:`mlp_routing` can tell.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q, k = np.array([[0.0], [2.0]]), np.array([[-1.0], [1.0], [3.0]])
    >>> nsa.dynamic.adaptive(q, k, [1.0, 1.0], 0.0, 0.5).toarray().astype(int)
    array([[0, 1, 1],
           [1, 1, 1]])
    """
    call = Call.of(q, k, causal, on_device=True)
    width = call.sizes.head_dim
    weights = call.head_arrays("weight", weight, (2 * width,))
    biases, taus = call.per_head_float("bias", bias), call.per_head_float("tau", tau)
    for number in taus:
        if not 0.0 < number < 1.0:
            raise ArgumentError(
                f"tau={number!r}", "numbers between 0 and 1", "0.5 asks for a gate more open than closed"
            )
    name = named(adaptive, weight=weight, bias=bias, tau=tau, causal=causal)

    # In float64, as they decide by one comparison.
    of_queries = call.tools.projections(weights[:, :width], call.tools.queries)
    of_keys = call.tools.projections(weights[:, width:], call.tools.keys)

    def select(batch: int, head: int) -> Pattern:
        # sigma(x) > tau where x > log(tau / (1 - tau)).
        level = math.log(taus[head] / (1.0 - taus[head])) - biases[head]
        number = batch * call.heads + head
        rows = partial(_rows, level - of_queries[number], of_keys[number], call.visible)
        return Pattern.from_rows((call.n_q, call.n_k), rows, name=name)

    return call.stack(select)


def _rows(
    least: npt.NDArray[np.float64], of_key: npt.NDArray[np.float64], limits: Integers, begin: int, end: int
) -> tuple[Integers, npt.NDArray[np.int32]]:
    indptr = np.zeros(end - begin + 1, np.int64)
    rows = least[begin:end], of_key, limits[begin:end], indptr
    _list_open(*rows, np.empty(0, np.int32))
    np.cumsum(indptr, out=indptr)
    keys = np.empty(indptr[-1], np.int32)
    _list_open(*rows, keys)
    return indptr, keys


@kernel
def _list_open(least, of_key, limits, indptr, keys):
    """Keys of every row. With no room in `keys`, only counts them, into ``indptr[row + 1]``."""
    for row in range(len(least)):
        if len(keys) == 0:
            count = 0
            for key in range(limits[row]):
                count += of_key[key] > least[row]
            indptr[row + 1] = count
        else:
            place = indptr[row]
            for key in range(limits[row]):
                if of_key[key] > least[row]:
                    keys[place] = key
                    place += 1
