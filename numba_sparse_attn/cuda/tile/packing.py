"""Few queries: the query heads that share a key head, behind one another as the rows of one tile.

A tile has 128 rows, and a call that decodes has one query. Where a group of heads has one pattern, its
queries are rows of the same product: keys and values are read once and multiplied once for all of them. It is
the same memory with other strides, so that nothing is copied and no kernel knows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ...formats.tiles import FULL, TILE, Tiles
from ...formats.work import Request
from ..view import DeviceView
from .dealing import expected_load

__all__ = ["pack_groups", "stacked"]


def pack_groups(
    request: Request, q: DeviceView, out: DeviceView, blocks: int
) -> tuple[Request, DeviceView, DeviceView]:
    """The call with each group's heads as rows, or as it is where that does not help.

    It helps if each of `blocks` blocks then has less to do. Where all tile rows run at a time anyway, heads
    side by side are as fast, and more of the device reads keys.
    """
    unchanged = request, q, out
    group = request.group
    if group == 1 or not 0 < request.n_q <= TILE // 2:
        return unchanged
    shared = request.which.reshape(-1, request.kv_heads, group)
    packed_q, packed_out = _as_rows(q, group), _as_rows(out, group)
    if packed_q is None or packed_out is None or not (shared == shared[..., :1]).all():
        return unchanged
    rows = group * request.n_q
    counts = np.array([len(tiles.columns) for tiles in request.structures if isinstance(tiles, Tiles)])
    longest, items = int(counts.max()), request.which.size
    packed_rows = -(-rows // TILE)
    now = expected_load(int(counts[request.which].sum()), items, longest, blocks)
    tiles = int(counts[shared[..., 0]].sum()) * packed_rows
    if expected_load(tiles, items // group * packed_rows, longest, blocks) >= now:
        return unchanged
    packed = replace(
        request,
        structures=tuple(stacked(tiles, group) for tiles in request.structures if isinstance(tiles, Tiles)),
        which=np.ascontiguousarray(shared[..., 0]).reshape(-1, request.kv_heads),
        heads=request.kv_heads,
        n_q=rows,
    )
    return packed, packed_q, packed_out


def _as_rows(view: DeviceView, group: int) -> DeviceView | None:
    """(..., kv_heads * group, n, d) as (..., kv_heads, group * n, d), if strides allow."""
    *lead, heads, length, columns = view.shape
    *lead_strides, head, row, column = view.strides
    if length == 1:
        row = head
    elif head != length * row:
        return None
    return DeviceView(
        view.address,
        (*lead, heads // group, group * length, columns),
        (*lead_strides, group * head, row, column),
        view.dtype,
        view.device,
        view.stream,
        view.library,
        view.owner,
        view.writable,
        view.hold,
    )


def stacked(tiles: Tiles, times: int) -> Tiles:
    """The pattern below itself, `times` times; it has at most half a tile's rows.

    Examples
    --------
    >>> from numba_sparse_attn import patterns
    >>> tiles = stacked(patterns.causal(50).tiles(), 4)
    >>> tiles.shape, tiles.indptr.tolist(), tiles.nnz == 4 * patterns.causal(50).nnz
    ((200, 50), [0, 1, 2], True)
    """
    length = tiles.shape[0]
    count = -(-times * length // TILE)
    row = np.arange(count * TILE)
    used, places = np.unique(tiles.mask_ids, return_inverse=True)
    bits = tiles.pool[used][:, row % length] * (row < times * length)[:, None].astype(np.uint64)
    # (tile row, mask, bits of 128 rows)
    masks = bits.reshape(len(used), count, TILE, 2).swapaxes(0, 1)
    full, empty = np.full((1, TILE, 2), ~np.uint64(0)), np.zeros((1, TILE, 2), np.uint64)
    every = np.concatenate([full, empty, masks.reshape(-1, TILE, 2)])
    _, first, number = np.unique(
        every.reshape(len(every), -1), axis=0, return_index=True, return_inverse=True
    )
    # Numbers by first appearance: the full mask is 0 and the empty one 1, which is then left out.
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    ids = rank[number.reshape(-1)][2:].reshape(count, len(used))[:, places]
    listed = ids != 1
    rows, positions = np.nonzero(listed)
    columns, mask_ids = tiles.columns[positions], ids[listed]
    mask_ids = np.where(mask_ids == FULL, FULL, mask_ids - 1).astype(np.int32)
    by_column = np.lexsort((rows, columns))
    pool = every[np.sort(first)]
    return Tiles(
        shape=(times * length, tiles.shape[1]),
        indptr=_offsets(rows, count),
        columns=columns,
        mask_ids=mask_ids,
        transposed_indptr=_offsets(columns, len(tiles.transposed_indptr) - 1),
        transposed_rows=rows[by_column].astype(np.int32),
        transposed_mask_ids=mask_ids[by_column],
        pool=np.delete(pool, 1, axis=0),
        nnz=times * tiles.nnz,
    )


def _offsets(numbers: npt.NDArray[np.integer], count: int) -> npt.NDArray[np.int64]:
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(numbers, minlength=count), out=offsets[1:])
    return offsets
