"""Launches of the kernels for entmax and sigmoid weights, beside those for softmax in ``__init__.py``.

Imported from there when first needed, and built from its pieces.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from ...formats.csr import Csr
from ...formats.work import Request
from ...normalisers import Entmax
from .. import warp
from ..device.weighing import ENTMAX, SIGMOID
from ..launch import load_kernel
from ..view import DeviceView, batch_parts
from .backward import QUERY_THREADS
from .lists import heads_with, table_of
from .normalised_backward import (
    ALPHA_SIGNATURE,
    NORMALISED_KEY_SIGNATURE,
    NORMALISED_QUERY_SIGNATURE,
    make_alpha_sum,
    make_normalised_key_backward,
    make_normalised_query_backward,
)
from .normalised_forward import (
    NORMALISED_SIGNATURE,
    NORMALISED_THREADS,
    NormalisedShape,
    make_normalised_forward,
)

__all__ = ["prepare_backward", "prepare_forward"]

#: Blocks that stay and take rows one after another: as many as an H200 runs at a time.
_MOST_BLOCKS = 1056
#: Bytes that the scores of their rows may take, unless those of one block take more.
_MOST_BYTES = 256 << 20


def _rule_of(request: Request) -> str:
    return ENTMAX if isinstance(request.normaliser, Entmax) else SIGMOID


def _steps_of(request: Request, device: int) -> DeviceView:
    """alpha - 1 of every query head, on a device; 0 for sigmoid weights."""
    assert request.normaliser is not None
    steps = [request.normaliser.step_of(head) for head in range(request.heads)]
    return table_of(np.array(steps, request.accumulator).tobytes(), request.accumulator.name, device)


def prepare_forward(
    request: Request, arrays: tuple[DeviceView, ...], aligned: bool, lse_wanted: bool
) -> warp._Prepared:
    """Launches of a forward call; arrays are q, k, v and out."""
    assert request.normaliser is not None
    device, real = arrays[0].device, request.accumulator.itemsize
    lse_head = request.n_q * real
    steps = _steps_of(request, device)
    launches, scratch_bytes = [], 0
    for first, length, operands in batch_parts(arrays):
        which = request.which[first : first + length].reshape(-1)
        lse_offset = first * request.heads * lse_head if lse_wanted else 0
        offsets = (*(operand[0] for operand in operands), lse_offset, 0)
        strides = [stride for operand in operands for stride in operand[1]]
        for number, csr in enumerate(request.structures):
            assert isinstance(csr, Csr)
            group = heads_with(which, number, device)
            if not group.number or not csr.shape[0]:
                continue
            lists, inner = warp._lists_and_shape(request, csr, arrays, aligned, whole=True)
            shape = NormalisedShape(inner, _rule_of(request))
            room = -(-int(np.diff(csr.indptr).max()) // 4) * 4
            block_bytes = max(1, inner.warps * room * real)
            blocks = min(lists.blocks * group.number, _MOST_BLOCKS, max(1, _MOST_BYTES // block_bytes))
            scratch_bytes = max(scratch_bytes, blocks * block_bytes)
            rest: tuple[Any, ...] = (steps.address, lse_head, lists.items, lists.indices, lists.blocks)
            rest += (group.table, group.number, request.heads, request.group)
            rest += (room, request.head_dim, request.value_dim, *strides)
            make, signature = make_normalised_forward, NORMALISED_SIGNATURE
            launches.append(
                warp._Launch(
                    warp._loaded(make, shape, signature, NORMALISED_THREADS, device),
                    (blocks, 1, 1),
                    shape.threads,
                    (0, 1, 2, 3, 4 if lse_wanted else warp._NULL, warp._SCRATCH),
                    warp._none_if_zero(offsets),
                    (*rest, request.scale, request.normaliser.row_lse),
                    (lists, group, steps),
                )
            )
    return warp._Prepared(tuple(launches), scratch_bytes)


def prepare_backward(
    request: Request, arrays: tuple[DeviceView, ...], aligned: bool, *, learns: bool
) -> warp._Prepared:
    """Launches of a backward call; arrays are q, k, v, out, dout, dq, dk and dv."""
    device, real = arrays[0].device, request.accumulator
    lse_head = request.n_q * real.itemsize
    steps = _steps_of(request, device)
    # In the temporary memory: delta, the rows' parts of dalpha, partial sums.
    row_bytes = -(-request.which.size * lse_head // 256) * 256
    before_sums = 2 * row_bytes if learns else row_bytes
    launches: list[warp._Launch] = []
    partial_bytes = 0
    dress = functools.partial(NormalisedShape, rule=_rule_of(request))
    for first, length, operands in batch_parts(arrays) if request.batch else ():
        before = first * request.heads
        one = warp._Pass(request, arrays, aligned, operands, before, before * lse_head, before_sums, None)
        which = request.which[first : first + length]
        launches += _query_launches(one, which, lse_head, steps, row_bytes if learns else None)
        added, needed = warp._key_launches(
            one,
            which,
            lse_head,
            make=make_normalised_key_backward,
            signature=NORMALISED_KEY_SIGNATURE,
            dress=dress,
            table=steps,
        )
        launches += added
        partial_bytes = max(partial_bytes, needed)
    if learns:
        kernel = load_kernel(make_alpha_sum, request.dtype.name, ALPHA_SIGNATURE, 32, device)
        sources, offsets = (warp._DALPHA, warp._SCRATCH), (0, row_bytes)
        rest = (request.batch, request.heads, request.n_q)
        launches.append(warp._Launch(kernel, (request.heads, 1, 1), 32, sources, offsets, rest, None))
    return warp._Prepared(tuple(launches), before_sums + partial_bytes)


def _query_launches(
    one: warp._Pass, which: npt.NDArray[np.int32], lse_head: int, steps: DeviceView, alpha_begins: int | None
) -> list[warp._Launch]:
    """dq, delta, and the rows' parts of dalpha if there is a place where they begin."""
    request, device = one.request, one.arrays[0].device
    places = (warp._Q, warp._K, warp._V, warp._DOUT, warp._DQ)
    learns = alpha_begins is not None
    sources = (*places, warp._LSE, warp._SCRATCH, warp._SCRATCH if learns else warp._NULL)
    alpha_offset = one.row_offset + alpha_begins if alpha_begins is not None else 0
    offsets = (*(one.operands[place][0] for place in places), one.row_offset, one.row_offset, alpha_offset)
    strides = [stride for place in places for stride in one.operands[place][1]]
    launches = []
    for number, csr in enumerate(request.structures):
        assert isinstance(csr, Csr)
        group = heads_with(which.reshape(-1), number, device)
        if not group.number or not csr.shape[0]:
            continue
        lists, inner = warp._lists_and_shape(request, csr, one.arrays, one.aligned, whole=True)
        shape = NormalisedShape(inner, _rule_of(request), learns)
        rest: tuple[Any, ...] = (steps.address, lse_head, lists.items, lists.indices)
        rest += (group.table, group.number, request.heads, request.group)
        rest += (request.head_dim, request.value_dim, *strides, request.scale)
        kernel = warp._loaded(
            make_normalised_query_backward, shape, NORMALISED_QUERY_SIGNATURE, QUERY_THREADS, device
        )
        grid = warp._grid(lists.blocks, group.number)
        launches.append(
            warp._Launch(
                kernel, grid, shape.threads, sources, warp._none_if_zero(offsets), rest, (lists, group, steps)
            )
        )
    return launches
