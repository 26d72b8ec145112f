"""The CPU engine: fused sparse attention in Numba, on all cores, forward and backward.

Heads whose structure is Tiles take the tile path (register-blocked products over panels of queries or
keys), heads whose structure is Csr the row path (one query at a time over the keys listed for it). Entmax and
sigmoid weights have kernels of their own, over rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats.changes import Changes
from ..formats.csr import Csr
from ..formats.tiles import Tiles
from ..formats.work import Request
from ..normalisers.softmax_plus_one import SoftmaxPlusOne, add_one

__all__ = ["backward", "forward", "why_not"]

_Array = npt.NDArray[Any]
_DTYPES = ("float16", "bfloat16", "float32", "float64")


def why_not(request: Request) -> list[str]:
    """Reasons why the engine cannot run a call; empty when it can.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_sparse_attn.formats.work import Request
    >>> which = np.zeros((1, 4), np.int32)
    >>> why_not(Request((), which, 4, 4, 8, 8, 64, 64, np.dtype(np.int8), 0.125))
    ['dtype int8; the CPU engine takes float16, bfloat16, float32 and float64']
    """
    reasons = []
    if request.dtype.name not in _DTYPES:
        reasons.append(
            f"dtype {request.dtype.name}; the CPU engine takes float16, bfloat16, float32 and float64"
        )
    kinds = {type(structure) for structure in request.structures} - {Tiles, Csr}
    if kinds:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        reasons.append(f"structures of type {names}; the CPU engine takes Tiles and Csr")
    if request.changed and Tiles in {type(structure) for structure in request.structures}:
        reasons.append(f"changes of scores ({', '.join(request.changed)}) on tiles; they go by rows")
    if _goes_by_rows(request) and any(isinstance(structure, Tiles) for structure in request.structures):
        reasons.append("Tiles with entmax or sigmoid weights, which the CPU engine computes over Csr")
    return reasons


def _goes_by_rows(request: Request) -> bool:
    """Whether weights are not softmax's, nor made from them."""
    return request.normaliser is not None and request.normaliser.needs_rows


def _heads_of(request: Request, kind: type) -> npt.NDArray[np.int64]:
    """Flat numbers ``b * heads + h``, ascending, of the heads whose structure is of a kind."""
    chosen = np.array([isinstance(structure, kind) for structure in request.structures], np.bool_)
    return np.flatnonzero(chosen[request.which])


def forward(
    request: Request,
    q: _Array,
    k: _Array,
    v: _Array,
    out: _Array,
    lse: _Array | None,
    changes: Changes | None = None,
) -> None:
    """Attention of all heads into `out`, and into `lse` if there is one.

    Parameters
    ----------
    request : Request
    q : (..., heads, n_q, d)
    k : (..., kv_heads, n_k, d)
    v : (..., kv_heads, n_k, d_v)
    out : (..., heads, n_q, d_v)
    lse : (..., heads, n_q) or None
        Arrays of any strides; all of ``request.dtype`` but `lse`, which is of ``request.accumulator``.
    changes : Changes, optional
        What scores go through; all structures are Csr then.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_sparse_attn.formats.tiles import Tiles
    >>> from numba_sparse_attn.formats.work import Request
    >>> pool = np.zeros((2, 128, 2), np.uint64)
    >>> pool[0] = 2**64 - 1
    >>> pool[1, 0, 0] = 0b101                       # query 0 sees keys 0 and 2
    >>> lists = np.array([0, 1]), np.zeros(1, np.int32), np.ones(1, np.int32)
    >>> tiles = Tiles((1, 3), *lists, *lists, pool, 2)
    >>> request = Request((tiles,), np.zeros((1, 1), np.int32), 1, 1, 1, 3, 4, 1, np.dtype("f8"), 0.5)
    >>> q, k, out = np.zeros((1, 1, 4)), np.zeros((1, 3, 4)), np.empty((1, 1, 1))
    >>> forward(request, q, k, np.array([[[1.0], [9.0], [2.0]]]), out, None)
    >>> out.item()
    1.5
    """
    if request.orders:
        from .ordered import forward_in_order

        forward_in_order(forward, request, q, k, v, out, lse)
        return
    if _goes_by_rows(request):
        from .normalised_forward import forward_normalised

        forward_normalised(request, q, k, v, out, lse)
        return
    adds_one = isinstance(request.normaliser, SoftmaxPlusOne)
    if adds_one and lse is None:
        lse = np.empty(q.shape[:-1], request.accumulator)
    tiles, rows = _heads_of(request, Tiles), _heads_of(request, Csr)
    if tiles.size:
        from .tile_forward import forward_tiles

        forward_tiles(request, tiles, q, k, v, out, lse)
    if rows.size:
        from .row_forward import forward_rows

        forward_rows(request, rows, q, k, v, out, lse, changes)
    if adds_one and lse is not None:
        add_one(out, lse)


def backward(
    request: Request,
    dout: _Array,
    q: _Array,
    k: _Array,
    v: _Array,
    out: _Array,
    lse: _Array,
    dq: _Array,
    dk: _Array,
    dv: _Array,
    dalpha: _Array | None = None,
    changes: Changes | None = None,
) -> list[_Array | None]:
    """Gradients of ``sum(dout * out)`` into `dq`, `dk` and `dv`.

    Parameters
    ----------
    request, q, k, v, out, lse, changes
        As for :func:`forward`, whose results `out` and `lse` are.
    dout : (..., heads, n_q, d_v)
    dq, dk, dv
        Shaped like `q`, `k` and `v`; query heads that share a key head add up in `dk` and `dv`.
    dalpha : (heads,), optional
        Gradient of a normaliser's parameter.

    Returns
    -------
    list of float64 arrays or None
        Gradients of the numbers of every step of `changes`, None where they are not wanted.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_sparse_attn.formats.tiles import Tiles
    >>> from numba_sparse_attn.formats.work import Request
    >>> pool = np.zeros((2, 128, 2), np.uint64)
    >>> pool[0] = 2**64 - 1
    >>> pool[1, 0, 0] = 0b101                       # query 0 sees keys 0 and 2
    >>> lists = np.array([0, 1]), np.zeros(1, np.int32), np.ones(1, np.int32)
    >>> tiles = Tiles((1, 3), *lists, *lists, pool, 2)
    >>> request = Request((tiles,), np.zeros((1, 1), np.int32), 1, 1, 1, 3, 4, 1, np.dtype("f8"), 0.5)
    >>> q, k, v = np.zeros((1, 1, 4)), np.zeros((1, 3, 4)), np.ones((1, 3, 1))
    >>> out, lse, dout = np.ones((1, 1, 1)), np.log([[2.0]]), np.ones((1, 1, 1))
    >>> dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    >>> backward(request, dout, q, k, v, out, lse, dq, dk, dv)
    []
    >>> dv.ravel().round(6).tolist()
    [0.5, 0.0, 0.5]
    """
    if request.orders:
        from .ordered import backward_in_order

        backward_in_order(backward, request, dout, q, k, v, out, lse, dq, dk, dv)
        return []
    if _goes_by_rows(request):
        from .normalised_backward import backward_normalised

        backward_normalised(request, dout, q, k, v, lse, dq, dk, dv, dalpha)
        return []
    tiles, rows = _heads_of(request, Tiles), _heads_of(request, Csr)
    if not rows.size:
        from .tile_backward import backward_tiles

        backward_tiles(request, tiles, dout, q, k, v, out, lse, dq, dk, dv)
    elif not tiles.size:
        from .row_backward import backward_rows

        return backward_rows(request, rows, dout, q, k, v, out, lse, dq, dk, dv, changes)
    else:
        _backward_both(request, tiles, rows, dout, q, k, v, out, lse, dq, dk, dv)
    return []


def _backward_both(
    request: Request,
    tiles: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    dout: _Array,
    q: _Array,
    k: _Array,
    v: _Array,
    out: _Array,
    lse: _Array,
    dq: _Array,
    dk: _Array,
    dv: _Array,
) -> None:
    """Both paths: a key head may have query heads on either, so dk and dv are summed afterwards."""
    from .row_backward import backward_rows
    from .tile_backward import backward_tiles

    dk_tiles, dk_rows = np.empty(dk.shape, request.accumulator), np.empty(dk.shape, request.accumulator)
    dv_tiles, dv_rows = np.empty(dv.shape, request.accumulator), np.empty(dv.shape, request.accumulator)
    backward_tiles(request, tiles, dout, q, k, v, out, lse, dq, dk_tiles, dv_tiles)
    backward_rows(request, rows, dout, q, k, v, out, lse, dq, dk_rows, dv_rows)
    dk[...] = dk_tiles + dk_rows
    dv[...] = dv_tiles + dv_rows
