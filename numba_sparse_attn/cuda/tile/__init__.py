"""The engine "cuda-tile": Tensor Cores over tiles of 128 x 128 pairs, exact to the single pair.

Arrays come as :class:`~numba_sparse_attn.cuda.view.DeviceView`, all on one device and ready on the stream
of `out`; kernels are queued there and nothing waits for them.
"""

from __future__ import annotations

import math

from ...formats.tiles import Tiles
from ...formats.work import Request
from ..changes import DeviceChanges
from ..view import DeviceView
from .launch_sm80 import backward_without_wgmma, forward_without_wgmma, has_wgmma
from .prepared import ForwardLaunch, prepare_forward
from .prepared_backward import BackwardLaunch, prepare_backward
from .shape import MOST_CHANGED_HEAD_DIM, MOST_HEAD_DIM

__all__ = ["backward", "forward", "why_not"]

_KINDS = ("float16", "bfloat16")
#: Changes of scores that need no number a pair, and write none.
_CHANGES = ("alibi", "softcap", "relative", "modify")


def why_not(request: Request) -> list[str]:
    """Reasons why the engine cannot run a call; empty when it can.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_sparse_attn.formats.work import Request
    >>> which = np.zeros((1, 4), np.int32)
    >>> why_not(Request((), which, 4, 4, 8, 8, 320, 64, np.dtype(np.float32), 0.125))
    ['elements of float32; the tile engine takes float16 and bfloat16', \
'head dimension 320; the tile engine takes up to 256']
    """
    reasons = []
    if request.dtype.name not in _KINDS:
        reasons.append(f"elements of {request.dtype.name}; the tile engine takes float16 and bfloat16")
    widest = max(request.head_dim, request.value_dim)
    if widest > MOST_HEAD_DIM:
        reasons.append(f"head dimension {widest}; the tile engine takes up to {MOST_HEAD_DIM}")
    if min(request.head_dim, request.value_dim) < 1:
        reasons.append("a head dimension of 0; the tile engine takes 1 and more")
    others = [change for change in request.changed if change not in _CHANGES]
    if others:
        reasons.append(
            f"changes of scores ({', '.join(others)}); the tile engine takes sinks, and "
            f"{', '.join(_CHANGES)} of which nothing is learned; cuda-warp and cpu take all"
        )
    if request.changed and widest > MOST_CHANGED_HEAD_DIM:
        reasons.append(
            f"changes of scores and head dimension {widest}; the tile engine takes up to "
            f"{MOST_CHANGED_HEAD_DIM}, beyond which registers do not hold what they need"
        )
    if not all(isinstance(structure, Tiles) for structure in request.structures):
        reasons.append("structures other than Tiles; the tile engine takes tile lists")
    if request.normaliser is not None and request.normaliser.needs_rows:
        reasons.append(
            f"normaliser {request.normaliser.name}; the tile engine takes softmax and softmax_plus_one, and "
            "weights that need whole rows are the warp engine's"
        )
    if not math.isfinite(request.scale):
        reasons.append(f"scale {request.scale}; the tile engine takes finite ones")
    return reasons


def forward(
    request: Request,
    q: DeviceView,
    k: DeviceView,
    v: DeviceView,
    out: DeviceView,
    lse: DeviceView | None,
    changes: DeviceChanges | None = None,
) -> None:
    """Queue attention into `out`, and into `lse` (contiguous) if there is one.

    `changes` are on the device of the arrays, and ready where these are.

    Examples
    --------
    Called by the planner: ``nsa.sparse_attention(q, k, v, pattern, engine="cuda-tile")``.
    """
    if not request.n_q or not request.which.size:
        return
    if not has_wgmma(out.device):
        forward_without_wgmma(request, q, k, v, out, lse, changes)
        return
    key = (
        *("tile forward", out.device, q.shape[:-3], q.strides, k.strides, v.strides, out.strides),
        *(q.address & 15, k.address & 15, v.address & 15, out.address & 15),
        *(changes.kinds if changes else ()),
    )
    launches: tuple[ForwardLaunch, ...] | None = request.memo.get(key)
    if launches is None:
        launches = request.memo[key] = prepare_forward(request, q, k, v, out, changes)
    if not request.n_k:
        k = v = q  # as the launches were prepared
    addresses = q.address, k.address, v.address, out.address
    for one in launches:
        one.run(addresses, 0 if lse is None else lse.address, changes.settings if changes else 0, out)


def backward(
    request: Request,
    dout: DeviceView,
    q: DeviceView,
    k: DeviceView,
    v: DeviceView,
    out: DeviceView,
    lse: DeviceView,
    dq: DeviceView,
    dk: DeviceView,
    dv: DeviceView,
    changes: DeviceChanges | None = None,
) -> None:
    """Queue gradients into `dq`, `dk` and `dv`; the same bits every time.

    Examples
    --------
    Called by the planner: ``nsa.sparse_attention_backward(..., engine="cuda-tile")``.
    """
    if not request.which.size:
        return
    arrays = (dout, q, k, v, out, lse, dq, dk, dv)
    if not has_wgmma(dq.device):
        backward_without_wgmma(request, *arrays, changes)
        return
    addresses = tuple([array.address for array in arrays])
    key = (
        *("tile backward", dq.device, q.shape[:-3], *[array.strides for array in arrays]),
        *[address & 15 for address in addresses],
        *(changes.kinds if changes else ()),
    )
    launches: tuple[BackwardLaunch, ...] | None = request.memo.get(key)
    if launches is None:
        launches = request.memo[key] = prepare_backward(request, arrays, changes)
    for one in launches:
        one.run(addresses, changes.settings if changes else 0, dq)
