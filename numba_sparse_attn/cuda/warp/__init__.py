"""The engine "cuda-warp": one warp a query, any CSR, any float type, head dimensions up to 512.

Arrays come as :class:`~numba_sparse_attn.cuda.view.DeviceView`, all on one device and ready on the stream
of `out`; kernels are queued there and nothing waits for them.
"""

from __future__ import annotations

import functools
import itertools
import math
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import EngineError
from ...formats.csr import Csr
from ...formats.work import Request
from .. import memory, staging, streams
from ..launch import launch, load_kernel
from ..view import DeviceView
from .backward import KEY_SIGNATURE, QUERY_SIGNATURE, make_key_backward, make_query_backward
from .forward import FORWARD_SIGNATURE, make_forward
from .merge import MERGE_SIGNATURE, make_merge
from .schedule import make_schedule
from .shape import MOST_HEAD_DIM, WARPS, WarpShape, warp_shape

__all__ = ["backward", "forward", "why_not"]

_THREADS = 32 * WARPS


def why_not(request: Request) -> list[str]:
    """Reasons why the engine cannot run a call; empty when it can.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_sparse_attn.formats.work import Request
    >>> which = np.zeros((1, 4), np.int32)
    >>> why_not(Request((), which, 4, 4, 8, 8, 640, 64, np.dtype(np.float16), 0.125))
    ['head dimension 640; the warp engine takes up to 512']
    """
    widest = max(request.head_dim, request.value_dim)
    reasons = []
    if widest > MOST_HEAD_DIM:
        reasons.append(f"head dimension {widest}; the warp engine takes up to {MOST_HEAD_DIM}")
    if not all(isinstance(structure, Csr) for structure in request.structures):
        reasons.append("structures other than Csr; the warp engine takes CSR rows")
    return reasons


class _Lists(NamedTuple):
    """A structure's schedule on a device; addresses stay valid while `hold` lives."""

    items: int
    item_count: int
    parts: int
    long_rows: int
    long_count: int
    indices: int
    wide: bool
    hold: tuple[DeviceView, ...]


_LISTS: weakref.WeakKeyDictionary[Csr, dict[tuple[int, bool], _Lists]] = weakref.WeakKeyDictionary()


def _lists_of(csr: Csr, device: int, *, in_parts: bool) -> _Lists:
    """The schedule of a structure, copied to the device when it is first used there.

    `in_parts` says whether long rows may be shared by several warps; only the forward pass folds them.
    """
    known = _LISTS.setdefault(csr, {})
    if (device, in_parts) not in known:
        stream = streams.own_stream(device)  # the caller's may be capturing a graph, or be gone tomorrow
        schedule = make_schedule(csr) if in_parts else make_schedule(csr, max(csr.nnz, 1))
        copies = tuple(
            staging.to_device(array, device, stream)
            for array in (schedule.items, schedule.long_rows, csr.indices)
        )
        streams.stream_object(stream, device).sync()
        known[device, in_parts] = _Lists(
            copies[0].address,
            len(schedule.items),
            schedule.parts,
            copies[1].address,
            len(schedule.long_rows),
            copies[2].address,
            csr.indices.dtype.itemsize == 8,
            copies,
        )
    return known[device, in_parts]


@functools.lru_cache(maxsize=256)
def _table(entries: bytes, device: int) -> DeviceView:
    """int32 head numbers on a device, for structures that only some heads have."""
    stream = streams.own_stream(device)
    view = staging.to_device(np.frombuffer(entries, np.int32), device, stream)
    streams.stream_object(stream, device).sync()
    return view


class _Part(NamedTuple):
    """Some consecutive batch elements that every array reaches with one stride."""

    first: int
    length: int
    operands: tuple[tuple[int, tuple[int, ...]], ...]


def _parts(arrays: tuple[DeviceView, ...]) -> Iterator[_Part]:
    """All batch elements at once if the axes before heads merge in every array, else one by one.

    An operand is (address, (batch, head, row, column) strides in bytes).
    """
    lead = arrays[0].shape[:-3]
    merged = [_merged_stride(lead, array.strides[:-3]) for array in arrays]
    if None not in merged:
        yield _Part(
            0,
            math.prod(lead),
            tuple(
                (array.address, (int(stride or 0), *array.strides[-3:]))
                for array, stride in zip(arrays, merged, strict=True)
            ),
        )
        return
    for first, place in enumerate(np.ndindex(lead)):
        operands = []
        for array in arrays:
            offset = sum(i * stride for i, stride in zip(place, array.strides[:-3], strict=True))
            operands.append((array.address + offset, (0, *array.strides[-3:])))
        yield _Part(first, 1, tuple(operands))


def _merged_stride(lengths: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """Stride of the axes flattened into one; None where there is none."""
    axes = [(length, stride) for length, stride in zip(lengths, strides, strict=True) if length != 1]
    for (_, outer), (length, inner) in itertools.pairwise(axes):
        if outer != length * inner:
            return None
    return axes[-1][1] if axes else 0


def _shape_for(request: Request, arrays: tuple[DeviceView, ...], wide: bool) -> WarpShape:
    """The layout of lanes; aligned if every row of every array can be read 16 bytes at a time."""
    size = request.dtype.itemsize
    aligned = all(
        array.strides[-1] == size
        and (array.shape[-1] * size) % 16 == 0
        and array.address % 16 == 0
        and all(stride % 16 == 0 for stride in array.strides[:-1])
        for array in arrays
    )
    kind = request.dtype.name
    return warp_shape(kind, request.head_dim, request.value_dim, aligned=aligned, wide=wide)


def _heads_of(which: npt.NDArray[np.int32], number: int, device: int) -> tuple[int, int, DeviceView | None]:
    """(address of the table or 0, number of heads, what keeps the table) of one structure."""
    if not which.any() and number == 0:
        return 0, which.size, None
    entries = np.flatnonzero(which.reshape(-1) == number).astype(np.int32)
    if not entries.size:
        return 0, 0, None
    table = _table(entries.tobytes(), device)
    return table.address, entries.size, table


def _blocks(items: int, heads: int) -> int:
    return -(-items // WARPS) * heads


def forward(
    request: Request, q: DeviceView, k: DeviceView, v: DeviceView, out: DeviceView, lse: DeviceView | None
) -> None:
    """Queue attention into `out`, and into `lse` (contiguous) if there is one.

    Examples
    --------
    Called by the planner: ``nsa.sparse_attention(q, k, v, pattern, engine="cuda-warp")``.
    """
    device, stream = out.device, streams.stream_object(out.stream, out.device)
    lse_head = request.n_q * request.accumulator.itemsize
    real = request.accumulator.itemsize
    log2_e = 1.0 / math.log(2.0)
    for part in _parts((q, k, v, out)):
        (q_at, q_by), (k_at, k_by), (v_at, v_by), (out_at, out_by) = part.operands
        which = request.which[part.first : part.first + part.length]
        lse_at = 0 if lse is None else lse.address + part.first * request.heads * lse_head
        for number, structure in enumerate(request.structures):
            assert isinstance(structure, Csr)
            table, heads, _held = _heads_of(which, number, device)
            if not heads:
                continue
            lists = _lists_of(structure, device, in_parts=True)
            shape = _shape_for(request, (q, k, v, out), lists.wide)
            workspace = None
            if lists.parts:
                slot_bytes = (2 + request.value_dim) * real
                workspace = memory.scratch(heads * lists.parts * slot_bytes, device, out.stream, out.library)
            place = workspace.address if workspace is not None else 0
            kernel = load_kernel(make_forward, shape, FORWARD_SIGNATURE, _THREADS, device)
            sizes = (lists.item_count, lists.parts, request.head_dim, request.value_dim)
            arguments: tuple[Any, ...] = (
                q_at,
                k_at,
                v_at,
                out_at,
                lse_at,
                lse_head,
                lists.items,
                lists.indices,
                place,
            )
            arguments += (table, heads, request.heads, request.group, *sizes, *q_by, *k_by, *v_by, *out_by)
            launch(
                kernel,
                _blocks(lists.item_count, heads),
                _THREADS,
                stream,
                (*arguments, float(request.scale * log2_e)),
            )
            if lists.parts:
                kernel = load_kernel(make_merge, shape, MERGE_SIGNATURE, _THREADS, device)
                merged: tuple[Any, ...] = (out_at, lse_at, lse_head, lists.long_rows, lists.long_count, place)
                merged += (table, request.heads, lists.parts, request.value_dim, *out_by)
                launch(kernel, _blocks(lists.long_count, heads), _THREADS, stream, merged)


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
) -> None:
    """Queue gradients into `dq`, `dk` and `dv`; the same bits every time.

    Examples
    --------
    Called by the planner: ``nsa.sparse_attention_backward(..., engine="cuda-warp")``.
    """
    shared = request.which.reshape(-1, request.kv_heads, request.group)
    if not (shared == shared[..., :1]).all():
        raise EngineError(
            "different patterns for query heads that share a key head, on the GPU, backward",
            "one pattern for all query heads of a key head",
            "repeat k and v for these heads, or use engine='cpu'",
        )
    if lse.size and _merged_stride(lse.shape, lse.strides) not in (0, lse.dtype.itemsize):
        raise EngineError(
            f"lse with shape {lse.shape} and strides {lse.strides}, on the GPU",
            "a contiguous lse, as the forward pass returns it",
            "copy it to a contiguous array",
        )
    device, stream = dq.device, streams.stream_object(dq.stream, dq.device)
    lse_head = request.n_q * request.accumulator.itemsize
    delta = memory.scratch(request.which.size * lse_head, device, dq.stream, dq.library)
    for part in _parts((q, k, v, out, dout, dq, dk, dv)):
        at = [operand[0] for operand in part.operands]
        by = [operand[1] for operand in part.operands]
        q_at, k_at, v_at, out_at, dout_at, dq_at, dk_at, dv_at = at
        q_by, k_by, v_by, out_by, dout_by, dq_by, dk_by, dv_by = by
        offset = part.first * request.heads * lse_head
        rows_at = (lse.address + offset, delta.address + offset, lse_head)
        which = request.which[part.first : part.first + part.length]
        for key_pass in (False, True):
            chosen = np.ascontiguousarray(which[:, :: request.group]) if key_pass else which
            for number, structure in enumerate(request.structures):
                assert isinstance(structure, Csr)
                table, heads, _held = _heads_of(chosen, number, device)
                if not heads:
                    continue
                rows = structure.transposed if key_pass else structure
                lists = _lists_of(rows, device, in_parts=False)
                shape = _shape_for(request, (q, k, v, out, dout, dq, dk, dv), lists.wide)
                sizes = (lists.item_count, request.head_dim, request.value_dim)
                arguments: tuple[Any, ...]
                if key_pass:
                    kernel = load_kernel(make_key_backward, shape, KEY_SIGNATURE, _THREADS, device)
                    arguments = (
                        q_at,
                        k_at,
                        v_at,
                        dout_at,
                        dk_at,
                        dv_at,
                        *rows_at,
                        lists.items,
                        lists.indices,
                    )
                    arguments += (table, request.kv_heads, request.group, *sizes)
                    arguments += (*q_by, *k_by, *v_by, *dout_by, *dk_by, *dv_by)
                else:
                    kernel = load_kernel(make_query_backward, shape, QUERY_SIGNATURE, _THREADS, device)
                    arguments = (
                        q_at,
                        k_at,
                        v_at,
                        out_at,
                        dout_at,
                        dq_at,
                        *rows_at,
                        lists.items,
                        lists.indices,
                    )
                    arguments += (table, request.heads, request.group, *sizes)
                    arguments += (*q_by, *k_by, *v_by, *out_by, *dout_by, *dq_by)
                blocks = _blocks(lists.item_count, heads)
                launch(kernel, blocks, _THREADS, stream, (*arguments, float(request.scale)))
