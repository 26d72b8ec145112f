"""The engine "cuda-warp": one warp a query, any CSR, any float type, head dimensions up to 512.

Arrays come as :class:`~numba_sparse_attn.cuda.view.DeviceView`, all on one device and ready on the stream
of `out`; kernels are queued there and nothing waits for them.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...formats.csr import Csr
from ...formats.work import Request
from .. import memory, streams
from ..changes import DeviceChanges
from ..launch import launch, load_kernel
from ..view import DeviceView, Operand, batch_parts, require_contiguous
from .backward import (
    KEY_SIGNATURE,
    KEY_STEPS,
    KEY_THREADS,
    QUERY_SIGNATURE,
    QUERY_THREADS,
    make_key_backward,
    make_query_backward,
)
from .forward import FORWARD_SIGNATURE, FORWARD_THREADS, make_forward
from .lists import Heads, Lists, by_key_of, entries_by_key_of, heads_with, lists_of
from .merge import ADD_SIGNATURE, MERGE_SIGNATURE, make_add, make_merge
from .shape import MOST_HEAD_DIM, SHARING_WARPS, WARPS, WarpShape, shared_shape, warp_shape

__all__ = ["backward", "forward", "why_not"]

#: Largest second dimension of a grid.
_MOST_ROWS_OF_BLOCKS = 65_535
#: Different layouts of arrays whose launches are remembered for a call.
_LAYOUTS_KEPT = 64


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


# Launches ---------------------------------------------------------------------------------------------------


class _Launch(NamedTuple):
    """A kernel with everything but the addresses of a call.

    Its first arguments are addresses: of the array of the call with number ``sources[i]``, of the call's
    temporary memory (``_SCRATCH``) or null (``_NULL``), each with ``offsets[i]`` added, if there are any.
    """

    kernel: Any
    grid: tuple[int, int, int]
    threads: int
    sources: tuple[int, ...]
    offsets: tuple[int, ...] | None
    rest: tuple[Any, ...]
    hold: Any


class _Prepared(NamedTuple):
    """All launches of one kind of call, in their order, and the temporary memory that they take turns in."""

    launches: tuple[_Launch, ...]
    scratch_bytes: int


#: Places at the end of a call's addresses.
_SCRATCH, _NULL = -2, -1


def _loaded(make: Callable[..., Any], shape: Any, signature: Any, resident: int, device: int) -> Any:
    return load_kernel(make, shape, signature, shape.threads, device, blocks=shape.blocks(resident))


def _none_if_zero(offsets: tuple[int, ...]) -> tuple[int, ...] | None:
    return offsets if any(offsets) else None


def _grid(blocks: int, heads: int) -> tuple[int, int, int]:
    return blocks, min(heads, _MOST_ROWS_OF_BLOCKS), -(-heads // _MOST_ROWS_OF_BLOCKS)


def _run(prepared: _Prepared, addresses: list[int], target: DeviceView) -> None:
    """Queue the launches on the stream of `target`, for arrays at these addresses."""
    stream = streams.stream_object(target.stream, target.device)
    launches, scratch_bytes = prepared
    if scratch_bytes:
        scratch = memory.scratch(scratch_bytes, target.device, target.stream, target.library)
        addresses += (scratch.address, 0)
    else:
        addresses += (0, 0)
    for kernel, grid, threads, sources, offsets, rest, _ in launches:
        if offsets is None:
            leading = [addresses[source] for source in sources]
        else:
            leading = [addresses[source] + offset for source, offset in zip(sources, offsets, strict=True)]
        launch(kernel, grid, threads, stream, (*leading, *rest))


def _keep(request: Request, layout: tuple[Any, ...], prepared: _Prepared) -> _Prepared:
    """Remember the launches for arrays that lie like these."""
    if len(request.memo) >= _LAYOUTS_KEPT:
        request.memo.clear()
    request.memo[layout] = prepared
    return prepared


def _lists_and_shape(
    request: Request,
    csr: Csr,
    arrays: tuple[DeviceView, ...],
    aligned: bool,
    *,
    mixed: bool = False,
    changes: DeviceChanges | None = None,
    whole: bool = False,
) -> tuple[Lists, WarpShape]:
    """The schedule of a structure, and the kernel's shape: staging where rows have runs in common.

    Rows that are to stay `whole`, one warp's each, are not staged.
    """
    size = request.dtype.itemsize
    aligned = aligned and all(
        array.strides[-1] == size
        and (array.shape[-1] * size) % 16 == 0
        and all(stride % 16 == 0 for stride in array.strides[:-1])
        for array in arrays
    )
    wide = csr.indices.dtype.itemsize == 8 or any(abs(array.strides[-2]) >= 1 << 31 for array in arrays)
    shape = warp_shape(
        request.dtype.name, request.head_dim, request.value_dim, aligned=aligned, wide=wide, mixed=mixed
    )
    if changes is not None:
        shape = replace(shape, changes=changes.kinds)
    # What is staged has lost its place in the lists.
    staged = None if whole or (changes and changes.by_entry) else shared_shape(shape, SHARING_WARPS)
    lists = lists_of(csr, arrays[0].device, share=staged is not None, wide=wide, whole=whole)
    return lists, staged if staged is not None and lists.shared else shape


# The engine -------------------------------------------------------------------------------------------------


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
    Called by the planner: ``nsa.sparse_attention(q, k, v, pattern, engine="cuda-warp")``.
    """
    addresses = [q.address, k.address, v.address, out.address]
    aligned = not (addresses[0] | addresses[1] | addresses[2] | addresses[3]) & 15
    strides = q.strides, k.strides, v.strides, out.strides
    kinds = changes.kinds if changes else ()
    layout = "forward", lse is not None, aligned, out.device, q.shape, strides, kinds
    prepared = request.memo.get(layout)
    if prepared is None:
        arrays = (q, k, v, out)
        if request.normaliser is not None and request.normaliser.needs_rows:
            from .normalised import prepare_forward

            made = prepare_forward(request, arrays, aligned, lse is not None)
        else:
            made = _prepare_forward(request, arrays, aligned, lse is not None, changes)
        prepared = _keep(request, layout, made)
    addresses.append(0 if lse is None else lse.address)
    addresses.append(changes.settings if changes else 0)
    _run(prepared, addresses, out)


def _prepare_forward(
    request: Request,
    arrays: tuple[DeviceView, ...],
    aligned: bool,
    lse_wanted: bool,
    changes: DeviceChanges | None,
) -> _Prepared:
    device, kind = arrays[0].device, request.dtype.name
    real = request.accumulator.itemsize
    lse_head = request.n_q * real
    launches: list[_Launch] = []
    scratch_bytes = 0
    for first, length, operands in batch_parts(arrays):
        offsets = [operand[0] for operand in operands]
        strides = [stride for operand in operands for stride in operand[1]]
        which = request.which[first : first + length].reshape(-1)
        lse_offset = first * request.heads * lse_head if lse_wanted else 0
        lse_source = 4 if lse_wanted else _NULL
        for number, csr in enumerate(request.structures):
            assert isinstance(csr, Csr)
            group = heads_with(which, number, device)
            if not group.number or not csr.shape[0]:
                continue
            lists, shape = _lists_and_shape(request, csr, arrays, aligned, changes=changes)
            heads = (group.table, group.number, request.heads)
            rest: tuple[Any, ...] = (lse_head, lists.items, lists.indices, *lists.segments)
            rest += (group.table, group.number, first * request.heads, request.heads, request.group)
            rest += (lists.parts, request.head_dim, request.value_dim, *strides)
            launches.append(
                _Launch(
                    _loaded(make_forward, shape, FORWARD_SIGNATURE, FORWARD_THREADS, device),
                    _grid(lists.blocks, group.number),
                    shape.threads,
                    (0, 1, 2, 3, lse_source, _SCRATCH, 5),
                    _none_if_zero((*offsets, lse_offset, 0, 0)),
                    (*rest, request.scale / math.log(2.0)),
                    (lists, group),
                )
            )
            if lists.parts:
                slots = group.number * lists.parts
                scratch_bytes = max(scratch_bytes, slots * (2 + request.value_dim) * real)
                launches.append(
                    _Launch(
                        load_kernel(make_merge, kind, MERGE_SIGNATURE, 32 * WARPS, device),
                        _grid(-(-lists.long_count // WARPS), group.number),
                        32 * WARPS,
                        (3, lse_source, _SCRATCH),
                        _none_if_zero((offsets[3], lse_offset, 0)),
                        (
                            *(lse_head, lists.long_rows, lists.long_count, *heads),
                            *(lists.parts, request.value_dim, *strides[12:]),
                        ),
                        (lists, group),
                    )
                )
    return _Prepared(tuple(launches), scratch_bytes)


#: Places of the arrays of a backward call.
_Q, _K, _V, _OUT, _DOUT, _DQ, _DK, _DV, _LSE, _SETTINGS, _DALPHA = range(11)


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
    dalpha: DeviceView | None = None,
    changes: DeviceChanges | None = None,
) -> None:
    """Queue gradients into `dq`, `dk` and `dv`, and into `dalpha` if there is one; the same bits every time.

    What pairs contribute to the gradients of `changes` goes where these say.

    Examples
    --------
    Called by the planner: ``nsa.sparse_attention_backward(..., engine="cuda-warp")``.
    """
    arrays = (q, k, v, out, dout, dq, dk, dv)
    addresses = [array.address for array in arrays]
    aligned = not functools.reduce(operator.or_, addresses) & 15
    kinds = changes.kinds if changes else ()
    learns = dalpha is not None
    strides = [array.strides for array in arrays]
    layout = "backward", aligned, learns, dq.device, q.shape, lse.strides, *strides, kinds
    prepared = request.memo.get(layout)
    if prepared is None:
        require_contiguous(lse)
        if request.normaliser is not None and request.normaliser.needs_rows:
            from .normalised import prepare_backward

            made = prepare_backward(request, arrays, aligned, learns=learns)
        else:
            made = _prepare_backward(request, arrays, aligned, changes)
        prepared = _keep(request, layout, made)
    addresses.append(lse.address)
    addresses.append(changes.settings if changes else 0)
    addresses.append(0 if dalpha is None else dalpha.address)
    _run(prepared, addresses, dq)


class _Pass(NamedTuple):
    """What the launches of a backward call have in common, for some batch elements."""

    request: Request
    arrays: tuple[DeviceView, ...]
    aligned: bool
    operands: tuple[Operand, ...]
    heads_before: int  # in the batch elements before
    row_offset: int  # of lse and delta
    delta_bytes: int
    changes: DeviceChanges | None

    def kernel_arguments(
        self, places: tuple[int, ...]
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Sources and offsets of arrays, lse, delta, partial sums and settings; and the arrays' strides."""
        sources = (*places, _LSE, _SCRATCH, _SCRATCH, _SETTINGS)
        rows = (self.row_offset, self.row_offset, self.delta_bytes, 0)
        offsets = (*(self.operands[place][0] for place in places), *rows)
        return sources, offsets, tuple(itertools.chain(*(self.operands[place][1] for place in places)))

    def add(
        self, place: int, lists: Lists, group: Heads, heads: int, columns: tuple[int, int, int]
    ) -> _Launch:
        """Add up partial sums into an array: columns are (elements of a slot, first, how many)."""
        device = self.arrays[0].device
        return _Launch(
            load_kernel(make_add, self.request.dtype.name, ADD_SIGNATURE, 32 * WARPS, device),
            _grid(-(-lists.long_count // WARPS), group.number),
            32 * WARPS,
            (place, _SCRATCH),
            (self.operands[place][0], self.delta_bytes),
            (lists.long_rows, lists.long_count, group.table, group.number, heads, lists.parts, *columns)
            + self.operands[place][1],
            (lists, group),
        )


def _prepare_backward(
    request: Request, arrays: tuple[DeviceView, ...], aligned: bool, changes: DeviceChanges | None
) -> _Prepared:
    launches: list[_Launch] = []
    lse_head = request.n_q * request.accumulator.itemsize
    # delta lies at the beginning of the temporary memory, partial sums behind it.
    delta_bytes = -(-request.which.size * lse_head // 256) * 256
    partial_bytes = 0
    for first, length, operands in batch_parts(arrays):
        before = first * request.heads
        one = _Pass(request, arrays, aligned, operands, before, before * lse_head, delta_bytes, changes)
        which = request.which[first : first + length]
        for queue in (_query_launches, _key_launches):
            added, needed = queue(one, which, lse_head)
            launches += added
            partial_bytes = max(partial_bytes, needed)
    return _Prepared(tuple(launches), delta_bytes + partial_bytes)


def _query_launches(one: _Pass, which: npt.NDArray[np.int32], lse_head: int) -> tuple[list[_Launch], int]:
    """dq and delta; and how many bytes of partial sums there are."""
    request, device = one.request, one.arrays[0].device
    launches, partial_bytes = [], 0
    sources, offsets, strides = one.kernel_arguments((_Q, _K, _V, _OUT, _DOUT, _DQ))
    for number, csr in enumerate(request.structures):
        assert isinstance(csr, Csr)
        group = heads_with(which.reshape(-1), number, device)
        if not group.number or not csr.shape[0]:
            continue
        lists, shape = _lists_and_shape(request, csr, one.arrays, one.aligned, changes=one.changes)
        rest: tuple[Any, ...] = (lse_head, lists.items, lists.indices, *lists.segments)
        rest += (group.table, group.number, one.heads_before, request.heads, request.group)
        rest += (lists.parts, request.head_dim, request.value_dim, *strides, request.scale)
        kernel = _loaded(make_query_backward, shape, QUERY_SIGNATURE, QUERY_THREADS, device)
        grid = _grid(lists.blocks, group.number)
        launches.append(_Launch(kernel, grid, shape.threads, sources, offsets, rest, (lists, group)))
        if lists.parts:
            size = request.head_dim
            launches.append(one.add(_DQ, lists, group, request.heads, (size, 0, size)))
            partial_bytes = max(
                partial_bytes, group.number * lists.parts * size * request.accumulator.itemsize
            )
    return launches, partial_bytes


def _key_launches(
    one: _Pass,
    which: npt.NDArray[np.int32],
    lse_head: int,
    *,
    make: Callable[..., Any] = make_key_backward,
    signature: Any = KEY_SIGNATURE,
    dress: Callable[[WarpShape], Any] = lambda shape: shape,
    table: DeviceView | None = None,
) -> tuple[list[_Launch], int]:
    """dk and dv; and how many bytes of partial sums there are.

    Another kernel than softmax's gets a shape that `dress` makes of the usual one, and the address of a table
    in front of the other numbers.
    """
    request, device = one.request, one.arrays[0].device
    launches, partial_bytes = [], 0
    sources, offsets, strides = one.kernel_arguments((_Q, _K, _V, _DOUT, _DK, _DV))
    if table is not None:  # of a kernel that changes no scores
        sources, offsets = sources[:-1], offsets[:-1]
    # Query heads that share a key head may have different structures.
    kinds, kind_of = np.unique(which.reshape(-1, request.group), axis=0, return_inverse=True)
    for number, kind in enumerate(kinds):
        mixed = bool((kind != kind[0]).any())
        structures = [request.structures[i] for i in (kind if mixed else kind[:1])]
        by_key = by_key_of(structures)
        group = heads_with(kind_of.reshape(-1), number, device)
        if not by_key.shape[0]:
            continue
        lists, shape = _lists_and_shape(
            request, by_key, one.arrays, one.aligned, mixed=mixed, changes=one.changes
        )
        entries = entries_by_key_of(structures, device) if one.changes and one.changes.by_entry else None
        rest: tuple[Any, ...] = () if table is None else (table.address,)
        rest += (lse_head, lists.items, lists.indices, *lists.segments)
        if table is None:
            rest += (entries.address if entries else 0, group.table, group.number, one.heads_before)
        else:
            rest += (group.table, group.number)
        rest += (request.kv_heads, request.group)
        rest += (lists.parts, request.head_dim, request.value_dim, request.n_q, *strides, request.scale)
        shape = replace(shape, steps=KEY_STEPS)
        kernel = _loaded(make, dress(shape), signature, KEY_THREADS, device)
        grid = _grid(lists.blocks, group.number)
        held = lists, group, entries, table
        launches.append(_Launch(kernel, grid, shape.threads, sources, offsets, rest, held))
        if lists.parts:
            size = request.head_dim + request.value_dim
            for place, first, count in (
                (_DK, 0, request.head_dim),
                (_DV, request.head_dim, request.value_dim),
            ):
                launches.append(one.add(place, lists, group, request.kv_heads, (size, first, count)))
            partial_bytes = max(
                partial_bytes, group.number * lists.parts * size * request.accumulator.itemsize
            )
    return launches, partial_bytes
