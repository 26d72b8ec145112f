"""Columns and diagonals that the last queries look at."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import check_scale
from ..formats.limits import limits_of
from ..formats.pieces import make_pieces
from ..patterns._arguments import check_int, title
from ..patterns._spans import runs
from ..patterns.heads import HeadPatterns
from ..patterns.pattern import Pattern
from . import _dense
from ._call import Call, Integers
from .catalogue import Array, Case, Mask, by_head, entry

__all__ = ["vertical_slash"]


def _definition(
    q: Array,
    k: Array,
    columns: int,
    slashes: int,
    last: int = 64,
    causal: bool = False,
    scale: float | None = None,
) -> Mask:
    n_q, n_k = len(q), len(k)
    allowed = _dense.seen(n_q, n_k, causal)
    scores = q @ k.T * (q.shape[1] ** -0.5 if scale is None else scale)
    weights = _dense.probabilities(scores, allowed)
    weights[: max(0, n_q - last)] = 0.0
    ahead = np.arange(n_k) - np.arange(n_q)[:, None] - (n_k - n_q)
    # Distance o is the diagonal of the keys o before the query's own place.
    offsets = np.arange(0 if causal else 1 - min(last, n_q), n_k)
    sums = np.array([np.inf if offset == 0 else weights[ahead == -offset].sum() for offset in offsets])
    kept = offsets[np.argsort(-sums, kind="stable")[:slashes]]
    chosen = np.argsort(-weights.sum(axis=0), kind="stable")[:columns]
    return allowed & (np.isin(-ahead, kept) | np.isin(np.arange(n_k), chosen))


@entry(
    examples=lambda: [
        Case(48, 48, {"columns": 4, "slashes": 5, "last": 8, "causal": True}),
        Case(33, 70, {"columns": [0, 1, 5, 90], "slashes": [1, 3, 4, 0], "last": 5}, heads=4, kv_heads=2),
        Case(40, 25, {"columns": 3, "slashes": 2, "last": 100, "causal": True}),
        Case(5, 0, {"columns": 1, "slashes": 0}),
    ],
    dense=by_head(_definition, "columns", "slashes"),
    scaled=lambda length: Case(length, length, {"columns": 64, "slashes": 128, "causal": True}, head_dim=64),
)
def vertical_slash(
    q: Any,
    k: Any,
    columns: Any,
    slashes: Any,
    *,
    last: int = 64,
    causal: bool = False,
    scale: float | None = None,
) -> Pattern | HeadPatterns:
    """Every query sees the keys, and the keys at the distances, that the last queries attend to most.

    ::

        {(i, j) : j in C  or  i + n_k - n_q - j in O}
        C = the `columns` keys j with the largest sum over i of p(i, j)
        O = distance 0 and the slashes - 1 distances o with the largest sum over i of p(i, i + n_k - n_q - o)

    with p the attention weights of the last `last` queries. Distances below 0 look ahead; without `causal`
    they are among those that can be chosen, as far as the last queries look ahead.

    Parameters
    ----------
    q : array (..., heads, n_q, d) or (n_q, d)
    k : array (..., kv_heads, n_k, d) or (n_k, d)
        As :func:`numba_sparse_attn.sparse_attention` takes them, in host or GPU memory.
    columns, slashes : int or sequence of int
        How many keys and how many distances; one number, or one for every query head.
    last : int
        Queries at the end by which is judged; all of them where that is their number or more.
    causal : bool
        Only keys ``j <= i + n_k - n_q`` may be seen.
    scale : float, optional
        Factor on q k^T; ``1 / sqrt(d)`` if not given.

    Returns
    -------
    Pattern or HeadPatterns
        A pattern for ``(n, d)`` arrays, else one for every head of every batch element; one piece a run of
        neighboring keys or distances.

    Notes
    -----
    Pairs: at most ``n_q * (columns + slashes)``.

    Cost: O(last * n_k * d) time to select.

    Use: for long prompts, as in MInference (2024): heads that look at some keys from everywhere and at some
    distances everywhere do so at the end, too.

    Avoid: for heads that look for content: what the last queries want is not what others want.

    Examples
    --------
    >>> import numpy as np, numba_sparse_attn as nsa
    >>> q, k = np.array([[0.0]] * 4 + [[9.0]]), np.array([[0.0], [1.0], [0.0], [0.0], [0.0]])
    >>> nsa.dynamic.vertical_slash(q, k, 1, 1, last=1, causal=True).toarray().astype(int)
    array([[1, 0, 0, 0, 0],
           [0, 1, 0, 0, 0],
           [0, 1, 1, 0, 0],
           [0, 1, 0, 1, 0],
           [0, 1, 0, 0, 1]])
    """
    call = Call.of(q, k, causal, on_device=True)
    widths, lengths = call.per_head("columns", columns), call.per_head("slashes", slashes)
    last = check_int("last", last, low=1)
    factor = check_scale(scale, call.sizes.head_dim)
    name = title(vertical_slash, columns=columns, slashes=slashes, last=last, causal=causal, scale=scale)
    first = max(0, call.n_q - last)
    # The furthest that a judging query looks ahead.
    ahead = 0 if call.causal else max(call.n_q - first - 1, 0)
    seen = limits_of(call.n_q, call.n_k, causal=call.causal)
    kept, distances = call.tools.best_lines(first, seen, factor, ahead, widths, lengths)

    def select(batch: int, head: int) -> Pattern:
        number = batch * call.heads + head
        nearest, beyond = runs(_listed(distances[number]) - ahead)
        pieces = [
            make_pieces(
                rows=(0, call.n_q), columns=runs(_listed(kept[number])), differences=call.differences
            ),
            make_pieces(
                rows=(0, call.n_q),
                columns=(0, call.n_k),
                differences=(call.offset + 1 - beyond, call.offset - nearest),
            ),
        ]
        return Pattern.from_pieces((call.n_q, call.n_k), np.concatenate(pieces), name=name)

    return call.stack(select)


def _listed(padded: npt.NDArray[np.int32]) -> Integers:
    """What a list holds before its padding."""
    return padded[padded >= 0].astype(np.int64)
