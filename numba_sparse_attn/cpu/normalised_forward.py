"""Forward pass over CSR rows with entmax or sigmoid weights: the scores of a whole row, then its weights.

Unlike softmax, entmax has no online form: which keys have any weight is known when all scores are. A thread
keeps the scores of one row; nothing else grows with the length of rows. Values are read for keys with weight
only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..formats.work import Request
from ..jit import for_each, kernel
from .elements import FLOAT32, head_addresses, load_row, store_row, type_code
from .gather import GROUP, gather_dot, list_rows
from .lists import read_int64
from .normalising import (
    KEYS,
    LSE,
    OUT,
    QUERY,
    SIGMOID,
    TABLE_COLUMNS,
    add_rows,
    entmax_power,
    logistic,
    own_lse,
    steps_of,
)
from .operands import aligned_empty, shares
from .row_work import (
    BLOCK,
    INDEX_BYTES,
    INDICES,
    INDPTR,
    LIST_COLUMNS,
    Wave,
    Workspace,
    join,
    joined_bytes,
    list_columns,
    padded,
    unit_costs,
    waves,
)
from .vector import address_of, fill, lane_count

__all__ = ["forward_normalised", "longest_row"]


@kernel
def _forward_kernel(
    scratch,
    kept,
    lists,
    heads,
    steps,
    ends,
    n_q,
    sizes,
    widths,
    lanes,
    code,
    key_stride,
    value_offset,
    query_strides,
    out_strides,
    lse_stride,
    scale,
    sigmoid_lse,
    first_unit,
    last_unit,
):
    """Units of BLOCK queries, counted through all key heads; arguments as of the softmax kernel.

    `steps` has the normaliser of every query head. scratch: query [key_width], sums [value_width], lse, then
    the scores of a row.
    """
    kind = scratch.dtype.type
    size = scratch.itemsize
    key_width, value_width = widths
    sums = key_width
    lse_place = sums + value_width
    base = address_of(scratch)
    products = scratch[lse_place + lanes :]
    scores = base + (lse_place + lanes) * size
    named = address_of(lists)
    fill(scratch, base, key_width, kind(0.0))

    blocks = (n_q + BLOCK - 1) // BLOCK
    for unit in range(first_unit, last_unit):
        key_head = unit // blocks
        first_row = (unit - key_head * blocks) * BLOCK
        last_row = first_row + BLOCK if first_row + BLOCK < n_q else n_q
        for row in range(first_row, last_row):
            for head in range(ends[key_head], ends[key_head + 1]):
                begin = read_int64(heads[head, INDPTR], row)
                count = read_int64(heads[head, INDPTR], row + 1) - begin
                fill(scratch, base + sums * size, value_width, kind(0.0))
                lse = -np.inf
                if count > 0:
                    load_row(
                        code,
                        heads[head, QUERY] + row * query_strides[0],
                        query_strides[1],
                        sizes[0],
                        scratch,
                        0,
                    )
                    indices, width = heads[head, INDICES], heads[head, INDEX_BYTES]
                    list_rows(indices, width, begin, count, heads[head, KEYS], key_stride, named)
                    gather_dot(scratch, base, named, 0, count, key_width // lanes, scores)
                    step = steps[head]
                    lse = own_lse(products, count, scale, step, sigmoid_lse, kept)
                    weighty = count
                    if step == SIGMOID:
                        for i in range(count):
                            products[i] = kind(scale * np.float64(products[i]) - lse)
                        logistic(scratch, products, scores, count)
                    else:
                        weighty = 0
                        for i in range(count):
                            z = 1.0 + step * (scale * np.float64(products[i]) - lse)
                            if not z <= 0.0:  # NaN stays
                                products[weighty] = kind(entmax_power(z, step))
                                lists[weighty] = lists[i]
                                weighty += 1
                    add_rows(
                        scratch,
                        scores,
                        named,
                        value_offset,
                        weighty,
                        value_width // lanes,
                        base + sums * size,
                    )
                target = heads[head, OUT] + row * out_strides[0]
                store_row(code, target, out_strides[1], sizes[1], scratch, sums)
                if heads[head, LSE] != 0:
                    scratch[lse_place] = kind(lse)
                    target = heads[head, LSE] + row * lse_stride
                    store_row(FLOAT32, target, size, 1, scratch, lse_place)


def longest_row(wave: Wave, transposed: bool = False) -> int:
    """Entries of the longest list of a wave."""
    lists = [csr.transposed if transposed else csr for csr in wave.lists]
    known = {id(csr): int(np.diff(csr.indptr).max(initial=0)) for csr in lists}
    return max(known.values(), default=0)


def forward_normalised(
    request: Request,
    q: npt.NDArray[Any],
    k: npt.NDArray[Any],
    v: npt.NDArray[Any],
    out: npt.NDArray[Any],
    lse: npt.NDArray[Any] | None,
) -> None:
    """Attention of all heads with the request's normaliser; arrays as of the engine's ``forward``."""
    assert request.normaliser is not None
    row_lse = request.normaliser.row_lse
    accumulator = request.accumulator
    sizes = request.head_dim, request.value_dim
    widths = padded(sizes[0], accumulator), padded(sizes[1], accumulator)
    lanes = lane_count(accumulator)
    selected = np.arange(request.batch * request.heads)
    steps = steps_of(request)
    columns = np.zeros((selected.size, 4), np.int64)
    columns[:, QUERY - KEYS] = head_addresses(q).reshape(-1)
    columns[:, OUT - KEYS] = head_addresses(out).reshape(-1)
    if lse is not None:
        columns[:, LSE - KEYS] = head_addresses(lse, 1).reshape(-1)
    workspace = Workspace(accumulator)

    def attend(wave: Wave) -> None:
        joined = join(k, v, wave.key_heads, wave.pairs, workspace, accumulator)
        heads = np.zeros((wave.heads.size, TABLE_COLUMNS), np.int64)
        heads[:, :LIST_COLUMNS] = list_columns(wave.lists)
        heads[:, KEYS : LSE + 1] = columns[wave.places]
        heads[:, KEYS] = joined.addresses[wave.owners]
        longest = longest_row(wave) + GROUP

        def work(share: tuple[int, int], worker: int) -> None:
            _forward_kernel(
                aligned_empty(sum(widths) + lanes + longest, accumulator),
                np.empty(longest),
                np.zeros(longest + GROUP, np.int64),
                heads,
                steps[wave.places],
                wave.ends,
                request.n_q,
                sizes,
                widths,
                lanes,
                type_code(request.dtype),
                joined.stride,
                joined.offset,
                q.strides[-2:],
                out.strides[-2:],
                0 if lse is None else lse.strides[-1],
                request.scale,
                row_lse,
                *share,
            )

        for_each(work, shares(unit_costs(wave, wave.lists, request.n_q), 2 * wave.pairs * sum(sizes)))

    for wave in waves(request, selected, joined_bytes(sizes, request.n_k, accumulator), 0):
        attend(wave)
