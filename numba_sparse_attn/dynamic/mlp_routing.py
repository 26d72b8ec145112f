"""Queries and keys that a small network sends the same way."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ArgumentError
from ..patterns.heads import HeadPatterns
from ..patterns.pattern import Pattern
from . import _dense
from ._call import Call, Floats, named
from ._lists import by_routes
from ._seeded import normals
from .catalogue import Array, Case, Mask, entry

__all__ = ["mlp_routing"]


def _affinity(rows: Array, head: int, router: Any) -> Array:
    for number, (weight, bias) in enumerate(router):
        rows = np.maximum(rows, 0.0) if number else rows
        of_head = weight[head] if weight.ndim == 3 else weight
        rows = rows @ of_head + (bias[head] if bias.ndim == 2 else bias)
    return rows


def _definition(
    q: Array, k: Array, router: Any, budget: Any, router_k: Any = None, causal: bool = False
) -> Mask:
    masks = []
    for head in range(len(q)):
        mine = budget[head] if isinstance(budget, list) else budget
        keys = k[head * len(k) // len(q)]
        of_query = _affinity(q[head], head, router).argmax(axis=1)
        of_key = _affinity(keys, head, router_k or router)
        if mine is None:
            shared = of_query[:, None] == (of_key.argmax(axis=1) if len(keys) else np.zeros(0))
        else:
            shared = _dense.best(of_key.T, np.ones(of_key.T.shape, np.bool_), mine)[of_query]
        masks.append(shared & _dense.seen(len(of_query), len(keys), causal))
    return np.stack(masks)


def _router(seed: int, *widths: int, heads: tuple[int, ...] = ()) -> tuple[tuple[Array, Array], ...]:
    return tuple(
        (normals(seed + at, (*heads, *widths[at : at + 2])), normals(seed - at, (*heads, widths[at + 1])))
        for at in range(len(widths) - 1)
    )


@entry(
    examples=lambda: [
        Case(48, 48, {"router": _router(20, 16, 8, 5), "budget": 10, "causal": True}),
        Case(
            33,
            70,
            {
                "router": _router(30, 16, 8, 3, heads=(4,)),
                "router_k": _router(40, 16, 3),
                "budget": [9, 0, 100, 20],
            },
            heads=4,
            kv_heads=2,
        ),
        Case(40, 25, {"router": _router(50, 16, 4), "budget": None, "causal": True}),
        Case(5, 0, {"router": _router(50, 16, 4), "budget": 3}),
    ],
    dense=_definition,
    scaled=lambda length: Case(
        length, length, {"router": _router(20, 64, 32, max(1, length // 128)), "budget": 128}, head_dim=64
    ),
)
def mlp_routing(
    q: Any, k: Any, router: Any, budget: Any, *, router_k: Any = None, causal: bool = False
) -> Pattern | HeadPatterns:
    """Every query sees the keys of the route that a network sends it to.

    ::

        {(i, j) : j among the `budget` keys with the largest route r(i) of router_k(k_j)}
        r(i) = the route with the largest of router(q_i)
        router(x) = W_m relu(... relu(W_1 x + b_1) ...) + b_m, a number a route

    Parameters
    ----------
    q : array (..., heads, n_q, d) or (n_q, d)
    k : array (..., kv_heads, n_k, d) or (n_k, d)
        As :func:`numba_sparse_attn.sparse_attention` takes them, in host memory.
    router : sequence of (weight, bias)
        Layers, each with a weight (inputs, outputs) and a bias (outputs,), or one of each for every query
        head: (heads, inputs, outputs) and (heads, outputs). The first has d inputs, the last an output a
        route.
    budget : int, sequence of int, or None
        Keys of a route; one number, or one for every query head. None: every key belongs to its largest
        route, however many that makes.
    router_k : sequence of (weight, bias), optional
        The network of the keys; that of the queries if not given.
    causal : bool
        Only keys ``j <= i + n_k - n_q`` may be seen.

    Returns
    -------
    Pattern or HeadPatterns
        A pattern for ``(n, d)`` arrays, else one for every head of every batch element. Held as a list of
        keys a route and a route a query; rows are made when they are needed.

    Notes
    -----
    Pairs: at most ``n_q * budget``. Causal rows may be empty: routes do not ask what comes first.

    Cost: O((n_q + n_k) * weights of the network) time to select.

    Use: with a router that was trained; keys choose by rank, as tokens of experts with a fixed capacity do.

    Avoid: untrained: it then is a hash that costs more than :func:`lsh`.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q = k = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.1, 3.0]])
    >>> nsa.dynamic.mlp_routing(q, k, [(np.eye(2), np.zeros(2))], 1).toarray().astype(int)
    array([[0, 0, 1, 0],
           [0, 0, 0, 1],
           [0, 0, 1, 0],
           [0, 0, 0, 1]])
    """
    call = Call.of(q, k, causal)
    of_queries = _layers(call, "router", router)
    of_keys = of_queries if router_k is None else _layers(call, "router_k", router_k)
    routes = [layers[-1][1].shape[-1] for layers in (of_queries, of_keys)]
    if routes[0] != routes[1]:
        raise ArgumentError(
            f"a router with {routes[0]} routes and a router_k with {routes[1]}",
            "as many routes in both",
            "give their last layers the same width",
        )
    budgets = [None] * call.heads if budget is None else call.per_head("budget", budget)
    name = named(mlp_routing, router=router, budget=budget, router_k=router_k, causal=causal)

    def select(batch: int, head: int) -> Pattern:
        queries = _last_products(of_queries, head, call.queries(batch, head))
        keys = _last_products(of_keys, head, call.keys(batch, head))
        return by_routes(call, queries, keys, budgets[head], name)

    return call.stack(select)


def _layers(call: Call, name: str, router: Any) -> list[tuple[Floats, Floats]]:
    """Weights [heads, inputs, outputs] and biases [heads, outputs] that fit each other."""
    if not isinstance(router, list | tuple) or not router or any(len(layer) != 2 for layer in router):
        raise ArgumentError(
            f"{name} of type {type(router).__name__}",
            "a sequence of layers, (weight, bias) each, at least one",
            "pass [(weight, bias), ...]",
        )
    layers, width = [], int(call.q.shape[-1])
    for number, (weight, bias) in enumerate(router):
        made = call.head_arrays(f"{name}[{number}][0]", weight, (width, None))
        width = int(made.shape[2])
        layers.append((made, call.head_arrays(f"{name}[{number}][1]", bias, (width,))))
    if not width:
        raise ArgumentError(f"{name} without routes", "at least one", "widen its last layer")
    return layers


def _last_products(layers: list[tuple[Floats, Floats]], head: int, rows: Floats) -> tuple[Floats, Floats]:
    """What the last layer gets, and for every route what that is multiplied with; the bias meets a 1."""
    *before, (weight, bias) = layers
    for inner, shift in before:
        rows = np.maximum(rows @ inner[head] + shift[head], 0.0)
    return (
        np.concatenate([rows, np.ones((len(rows), 1), rows.dtype)], axis=1),
        np.concatenate([weight[head].T, bias[head][:, None]], axis=1),
    )
